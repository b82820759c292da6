"""The answers that tell of a job: its view, its entity tag, and when to ask again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import JSONResponse

from service.conditional import json_answer, not_modified, strong_etag, unchanged
from service.deps import Known, Parts, Services, found_job
from service.job_views import job_view
from service.schemas import JobView
from service.standing import Standing
from storage.jobs import Job

LONGEST_PAUSE_S = 15


def shown(parts: Services, job: Job, *, brief: bool = False) -> JobView:
    """A job as it goes over the wire."""
    return job_view(job, brief=brief, standing=parts.standings.of(job))


def accepted(
    parts: Services,
    job: Job,
    status: int,
    *,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTasks | None = None,
) -> Response:
    """The answer to a request that made or changed a job."""
    standing = parts.standings.of(job)
    told = {
        "Location": f"/v1/jobs/{job.id}",
        "ETag": _etag(job, standing),
        **_pause(job),
        **(headers or {}),
    }
    document = job_view(job, standing=standing).model_dump(mode="json")
    return JSONResponse(document, status, told, background=background)


def seen_job(job_id: Annotated[str, FromPath()], parts: Parts, who: Known) -> tuple[Job, Standing]:
    """The job that the address names, and where it stands: all questions in one visit to a thread."""
    job = found_job(job_id, parts, who)
    return job, parts.standings.of(job)


SeenJob = Annotated[tuple[Job, Standing], Depends(seen_job)]


def polled(request: Request, job: Job, standing: Standing, *, brief: bool) -> Response:
    """The answer to a client that looks at a job again and again; asks nobody, so that it needs no thread."""
    etag = _etag(job, standing, brief=brief)
    if unchanged(request, etag):
        return not_modified(etag, {"Cache-Control": "private, no-cache", **_pause(job)})
    return json_answer(request, job_view(job, brief=brief, standing=standing), etag=etag, headers=_pause(job))


def _etag(job: Job, standing: Standing, *, brief: bool = False) -> str:
    return strong_etag(job.id, job.revision, standing, *(["brief"] if brief else []))


def _pause(job: Job) -> dict[str, str]:
    """When to ask again: a tenth of the job's age, between a second and `LONGEST_PAUSE_S`."""
    if job.state.terminal:
        return {}
    tenth = (time.time() - job.created_at) / 10
    return {"Retry-After": str(round(min(max(tenth, 1), LONGEST_PAUSE_S)))}
