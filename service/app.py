"""The web application. `create_app` takes its parts; `build` makes them from the environment."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from service import errors, methods, request_log, tracing
from service.auditing import Auditing
from service.deps import Services
from service.edge import Edge, VolumeCors
from service.first_key import keep_first_key
from service.metrics import Metrics
from service.observing import Observing
from service.queue import CeleryQueue, JobQueue
from service.readiness import checks_of
from service.routes import ROUTERS
from service.settings import ServiceSettings
from service.sweeper import Sweeper
from service.webhooks import Courier
from storage import census
from storage.access import Access
from storage.catalogue import Catalogue
from storage.log_lines import set_up

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another waits: by Python's own 5 ms a few threads with
work hold up the event loop, and everybody who polls.
"""


def build() -> FastAPI:
    """The application as the environment describes it; a factory for uvicorn."""
    sys.setswitchinterval(SWITCH_S)
    settings = ServiceSettings()
    set_up(settings.log_format)
    settings.data_root.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue.open(settings.catalogue_url)
    if settings.authentication:
        keep_first_key(settings, Access(catalogue.database))
    return create_app(settings, catalogue, CeleryQueue(settings.broker))


def create_app(settings: ServiceSettings, catalogue: Catalogue, queue: JobQueue) -> FastAPI:
    """The application around given parts. It closes the catalogue when it stops."""
    spans = tracing.provider()
    app = FastAPI(
        title="Tomotrain",
        version=version("tomotrain"),
        summary="Tensor trains of medical volumes too big for memory, with a certificate",
        lifespan=_lifespan,
        telemetry=tracing.telemetry(spans),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    parts = Services.of(settings, catalogue, queue)
    app.state.services, app.state.spans = parts, spans
    app.state.metrics = measured = Metrics(
        partial(census.take, catalogue.database, fresh_s=settings.worker_fresh_s), settings.data_root
    )
    app.state.checks = checks_of(parts)
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    methods.install(app, ROUTERS)
    app.add_middleware(Auditing, audit=parts.audit, reads_s=settings.audit_reads_s)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False)
    app.add_middleware(VolumeCors, origins=settings.zarr_origins)
    app.add_middleware(Edge)
    app.add_middleware(Observing, observers=(measured.observe, request_log.write))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    parts: Services = app.state.services
    sweeper = Sweeper(
        parts.catalogue,
        parts.queue,
        parts.settings.data_root,
        every_s=parts.settings.sweep_every_s,
        ring_after_s=parts.settings.ring_after_s,
        jobs_kept_s=parts.settings.jobs_kept_s,
        stow_quiet_s=parts.settings.stow_quiet_s,
    )
    courier = Courier(parts.webhooks, parts.outside, every_s=parts.settings.sweep_every_s)
    sweeper.start()
    courier.start()
    try:
        yield {"stopping": parts.watcher.close}
    finally:
        await parts.watcher.stop()
        courier.stop()
        sweeper.stop()
        app.state.checks.close()
        if app.state.spans is not None:
            app.state.spans.shutdown()
        parts.catalogue.close()
