"""What the routes are handed: the application's parts, who sends the request, and what its address names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi import Path as FromPath
from fastapi.security import HTTPBearer, SecurityScopes
from starlette.concurrency import run_in_threadpool

from service.errors import ApiError
from service.identity import Doorkeeper, Principal
from service.outside import Guard
from service.queue import JobQueue
from service.rates import Rates
from service.settings import ServiceSettings
from service.shelf import Shelf
from service.standing import Standings
from service.uploading import Uploads
from service.watching import Watcher
from storage.access import Access, Scope
from storage.artifacts import ArtifactStore
from storage.audit import AuditLog
from storage.catalogue import Catalogue
from storage.changes import Changes
from storage.errors import MissingJob, MissingVolume, VolumeNotReady
from storage.jobs import Job
from storage.records import VolumeRecord, VolumeState
from storage.webhooks import Webhooks

_ID = re.compile(r"[a-z]{1,8}_[0-9a-f-]{1,40}")
_REFUSED_PER_S, _REFUSED_AT_ONCE = 5.0, 100
"""Requests of one address whose sender is not recognised."""
_BEARER = HTTPBearer(
    auto_error=False, description="an API key (`tt_...`), or a token of the OpenID Connect issuer"
)


@dataclass(frozen=True)
class Services:
    """The parts that `create_app` was given, and what is made of them."""

    settings: ServiceSettings
    catalogue: Catalogue
    queue: JobQueue
    standings: Standings
    artifacts: ArtifactStore
    shelf: Shelf
    uploads: Uploads
    access: Access
    audit: AuditLog
    doorkeeper: Doorkeeper
    rates: Rates
    refused: Rates
    watcher: Watcher
    webhooks: Webhooks
    outside: Guard

    @classmethod
    def of(cls, settings: ServiceSettings, catalogue: Catalogue, queue: JobQueue) -> Services:
        """Everything that a service needs."""
        access = Access(catalogue.database)
        return cls(
            settings=settings,
            catalogue=catalogue,
            queue=queue,
            standings=Standings(
                catalogue, worker_fresh_s=settings.worker_fresh_s, kept_s=settings.jobs_kept_s
            ),
            artifacts=ArtifactStore(settings.data_root / "artifacts"),
            shelf=Shelf(settings.data_root),
            uploads=Uploads(settings, catalogue),
            access=access,
            audit=AuditLog(catalogue.database),
            doorkeeper=Doorkeeper(settings, access),
            rates=Rates(settings.requests_per_s, settings.requests_at_once),
            refused=Rates(_REFUSED_PER_S, _REFUSED_AT_ONCE),
            watcher=Watcher(Changes(catalogue.database)),
            webhooks=Webhooks(catalogue.database),
            outside=Guard(settings.webhook_hosts),
        )

    def ring(self, *jobs: Job) -> None:
        """Ring for new jobs, and note it; when that fails, the sweep will ring."""
        rung = []
        for job in jobs:
            if not self.queue.ring(job):
                break
            rung.append(job.id)
        if rung:
            self.catalogue.rang(rung)


async def services(request: Request) -> Services:
    """The application's parts."""
    parts: Services = request.app.state.services
    return parts


Parts = Annotated[Services, Depends(services)]


async def identified(
    request: Request, parts: Parts, needed: SecurityScopes, _: Annotated[Any, Depends(_BEARER)]
) -> Principal:
    """Who sends the request, who may do what the route needs. Raises ApiError 401, 403 or 429."""
    known: Principal | None = getattr(request.state, "principal", None)
    if known is None:
        known = await _recognised(request, parts)
        request.state.principal = known
        _refuse_haste(parts.rates, known.name)
    known.require(*needed.scopes)
    return known


async def _recognised(request: Request, parts: Services) -> Principal:
    recognised = parts.doorkeeper.remembered(request)
    if recognised is not None:
        return recognised
    try:
        return await run_in_threadpool(parts.doorkeeper.recognise, request)
    except ApiError as error:
        if error.code in ("no-credentials", "bad-credentials"):
            _refuse_haste(parts.refused, request.client.host if request.client else "")
        raise


def _refuse_haste(rates: Rates, sender: str) -> None:
    wait_s = rates.wait_s(sender)
    if wait_s:
        raise ApiError(
            "too-many-requests",
            f"more requests than this service answers to one sender; wait {wait_s:.1f} s",
            retryable=True,
        )


def needs(*scopes: Scope) -> Any:
    """The dependency of a route that only a holder of these scopes may use."""
    return Security(identified, scopes=list(scopes))


Known = Annotated[Principal, Security(identified)]


def found_volume(volume_id: Annotated[str, FromPath()], parts: Parts, who: Known) -> VolumeRecord:
    """The volume that the address names. Raises MissingVolume, also for another project's."""
    if not _ID.fullmatch(volume_id):
        raise MissingVolume(volume_id)
    return parts.catalogue.volume(volume_id, project_id=who.project_id)


FoundVolume = Annotated[VolumeRecord, Depends(found_volume)]


def ready_volume(record: FoundVolume) -> VolumeRecord:
    """The volume that the address names, ready to be read. Raises MissingVolume or VolumeNotReady."""
    if record.state is not VolumeState.READY:
        raise VolumeNotReady(record.id, record.state)
    return record


ReadyVolume = Annotated[VolumeRecord, Depends(ready_volume)]


def found_job(job_id: Annotated[str, FromPath()], parts: Parts, who: Known) -> Job:
    """The job that the address names. Raises MissingJob, also for another project's."""
    if not _ID.fullmatch(job_id):
        raise MissingJob(job_id)
    return parts.catalogue.job(job_id, project_id=who.project_id)


FoundJob = Annotated[Job, Depends(found_job)]
