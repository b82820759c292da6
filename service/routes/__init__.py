"""The addresses of the service, one file per resource."""

from __future__ import annotations

from fastapi import APIRouter

from service.routes import (
    access,
    audit,
    dashboard,
    dicomweb,
    events,
    health,
    imports,
    jobs,
    kinds,
    logs,
    metrics,
    submissions,
    tus,
    uploads,
    volumes,
    webhooks,
)

ROUTERS: tuple[APIRouter, ...] = (
    volumes.router,
    imports.router,
    uploads.router,
    tus.router,
    dicomweb.router,
    kinds.router,
    submissions.router,
    jobs.router,
    logs.router,
    events.router,
    webhooks.router,
    access.router,
    audit.router,
    health.router,
    metrics.router,
    dashboard.router,
)
