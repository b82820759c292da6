"""Jobs as they change: server-sent events of one job, or of all jobs of the project."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi import Path as FromPath
from starlette.concurrency import run_in_threadpool

from service.deps import Known, Parts, Services, needs
from service.errors import ApiError
from service.events import EventStream, of_job, of_project
from service.identity import Principal
from service.schemas import PROBLEMS
from storage.access import Scope
from storage.changes import Changes, Glance
from storage.errors import MissingJob

MOST_LISTENERS = 5000
"""Of one process."""
_ID = re.compile(r"job_[0-9a-f-]{1,40}")

router = APIRouter(prefix="/v1", tags=["events"], responses=PROBLEMS, dependencies=[needs(Scope.JOBS_READ)])

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=100, description="`id` of the last event that came")
]
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["state", "progress", "end", "job", "reset", "ping"]},
        "id": {"type": "string", "description": "for `Last-Event-ID`"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
        "description": "server-sent events; `data` is JSON: `id`, `kind`, `state`, `attempt`, `revision`, "
        "`volume_id`, `created_at`, `started_at`, `ended_at`, `progress`, `error_code`, `links` of a job",
    }
}


def found_glance(job_id: Annotated[str, FromPath()], parts: Parts, who: Known) -> Glance:
    """The job that the address names, briefly. Raises MissingJob, also for another project's."""
    if not _ID.fullmatch(job_id):
        raise MissingJob(job_id)
    for glance in Changes(parts.catalogue.database).glances([job_id]):
        if glance.project_id == who.project_id:
            return glance
    parts.catalogue.job(job_id, project_id=who.project_id)  # says why there is none
    raise MissingJob(job_id)


@router.get(
    "/jobs/{job_id}/events",
    status_code=200,
    response_class=EventStream,
    responses={**STREAM, 204: {"description": "the job has ended, and the client knows: do not come back"}},
)
def watch_job(
    request: Request,
    job: Annotated[Glance, Depends(found_glance)],
    parts: Parts,
    who: Known,
    last_event_id: LastEventId = None,
) -> Response:
    """How a job goes on: `state` when that, or the attempt, is another, `progress`, `end` once, and a `ping`
    every 15 seconds.

    An event's id is the job's revision. Who comes back with `Last-Event-ID` is told of the present state,
    unless that was the last event.
    """
    seen = int(last_event_id) if last_event_id and re.fullmatch(r"[0-9]{1,9}", last_event_id) else None
    if job.state.terminal and seen == job.revision:
        return Response(status_code=204)
    _refuse_crowds(parts)
    return EventStream(of_job(parts.watcher, job, seen, _welcome(request, parts, who)), parts.watcher)


@router.get("/events", status_code=200, response_class=EventStream, responses=STREAM)
def watch_jobs(request: Request, parts: Parts, who: Known, last_event_id: LastEventId = None) -> Response:
    """How the project's jobs go on: a `job` for every change, and a `ping` every 15 seconds.

    It begins with a `ping` whose id says from where on changes are told: read `/v1/jobs` after it. Who comes
    back with `Last-Event-ID` gets what was missed, of each job its present state; or a `reset`, where that
    would be too much: read `/v1/jobs` anew.
    """
    _refuse_crowds(parts)
    events = of_project(parts.watcher, who.project_id, last_event_id, _welcome(request, parts, who))
    return EventStream(events, parts.watcher)


def _refuse_crowds(parts: Services) -> None:
    if parts.watcher.listeners >= MOST_LISTENERS:
        detail = f"{MOST_LISTENERS} clients listen already; poll the job, or come back later"
        raise ApiError("too-many-requests", detail, retryable=True)


def _welcome(request: Request, parts: Services, who: Principal) -> Callable[[], Awaitable[bool]]:
    """Whether the sender would still be let in."""

    async def welcome() -> bool:
        try:
            known = await _recognised(request, parts)
        except ApiError:
            return False
        return known.project_id == who.project_id and Scope.JOBS_READ in known.scopes

    return welcome


async def _recognised(request: Request, parts: Services) -> Principal:
    known = parts.doorkeeper.remembered(request)
    if known is not None:
        return known
    return await run_in_threadpool(parts.doorkeeper.recognise, request)
