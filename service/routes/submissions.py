"""Jobs, submitted: one, many at once, or one again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.deps import FoundJob, Known, Parts, Services, needs
from service.described import REPLAY_HEADER, Answers, a_job, problems
from service.idempotency import REPLAYED, KeyHeader, request_key
from service.identity import Principal
from service.job_answers import accepted, shown
from service.job_requests import BatchRequest, Desk, JobRequest, in_batch
from service.preferences import Preferences
from service.schemas import PROBLEMS, JobList, JobView
from service.waiting import at_its_end
from storage.access import Scope
from storage.errors import MissingVolume, VolumeNotReady
from storage.jobs import JobState, Submission, Submitted

MOST_BODY_BYTES = 4 << 20
"""A cohort of 8,000 rows with a dozen covariates each, or 1,000 jobs of 4 kB."""

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    responses=PROBLEMS,
    dependencies=[needs(Scope.JOBS_READ, Scope.JOBS_WRITE)],
)
_ANSWERS = a_job(
    {
        200: "the job, which has ended within the time that `Prefer: wait` gave it",
        202: "the job, which goes on",
    }
) | problems(400, 401, 403, 404, 409, 410, 413, 422, 429, 503, 507)
_BATCH_ANSWERS: Answers = {
    202: {"headers": REPLAY_HEADER, "description": "the jobs, in this order"},
    **problems(400, 401, 403, 409, 410, 413, 422, 429, 503, 507),
}

PreferHeader = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`respond-async`, or `wait=10`: seconds that the answer may take, 30 at most (RFC 7240)",
    ),
]


@router.post("", status_code=202, response_model=JobView, responses=_ANSWERS, max_body_size=MOST_BODY_BYTES)
async def submit(
    request: Request,
    wanted: JobRequest,
    parts: Parts,
    who: Known,
    idempotency_key: KeyHeader = None,
    prefer: PreferHeader = None,
) -> Response:
    """Have a job done. On a volume that is still being read it waits until that is `ready`."""

    def made() -> list[Submission]:
        return [Desk(parts.catalogue, who, [wanted.volume_id]).submission(wanted)]

    submitted = await run_in_threadpool(_done_once, request, parts, who, wanted, made)
    return await _one_answer(request, parts, submitted)


@router.post(
    ":batch",
    status_code=202,
    response_model=JobList,
    responses=_BATCH_ANSWERS,
    max_body_size=MOST_BODY_BYTES,
)
def submit_batch(
    request: Request,
    wanted: BatchRequest,
    background: BackgroundTasks,
    parts: Parts,
    who: Known,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Have up to 1,000 jobs done, all of them or none: a refusal points to each that does not fit."""

    def made() -> list[Submission]:
        return Desk(parts.catalogue, who, [each.volume_id for each in wanted.jobs]).submissions(wanted.jobs)

    try:
        submitted = _done_once(request, parts, who, wanted, made)
    except (MissingVolume, VolumeNotReady) as error:
        raise in_batch(error, wanted.jobs) from error
    _ring(background, parts, submitted)
    document = JobList(jobs=[shown(parts, job, brief=True) for job in submitted.jobs])
    return JSONResponse(document.model_dump(mode="json"), 202, _replayed(submitted), background=background)


@router.post("/{job_id}/retry", status_code=202, response_model=JobView, responses=_ANSWERS)
async def retry(
    request: Request,
    job: FoundJob,
    parts: Parts,
    who: Known,
    idempotency_key: KeyHeader = None,
    prefer: PreferHeader = None,
) -> Response:
    """Have a job that failed or was cancelled done again: as a new job, with the same parameters."""

    def made() -> list[Submission]:
        return [Desk(parts.catalogue, who, [job.volume_id]).repetition(job)]

    submitted = await run_in_threadpool(_done_once, request, parts, who, None, made)
    return await _one_answer(request, parts, submitted)


def _done_once(
    request: Request,
    parts: Services,
    who: Principal,
    body: BaseModel | None,
    made: Callable[[], Sequence[Submission]],
) -> Submitted:
    """The jobs of a request: new ones, or those that it made when it was sent before."""
    key = request_key(request, body)
    earlier = None if key is None else parts.catalogue.submitted(who.project_id, key)
    return earlier or parts.catalogue.submit_all(made(), who.sender(request), key)


async def _one_answer(request: Request, parts: Services, submitted: Submitted) -> Response:
    """The answer about one job: at once, or when it has ended, as the client prefers."""
    preferences, ringing = Preferences.of(request), BackgroundTasks()
    (job,) = submitted.jobs
    _ring(ringing, parts, submitted)
    if preferences.wait_s:
        await ringing()
        ringing = BackgroundTasks()
        job = await at_its_end(parts.watcher, parts.catalogue, job, preferences.wait_s)
    status = 200 if preferences.wait_s and job.state.terminal else 202
    headers = {**preferences.headers(), **_replayed(submitted)}
    return await run_in_threadpool(accepted, parts, job, status, headers=headers, background=ringing)


def _ring(background: BackgroundTasks, parts: Services, submitted: Submitted) -> None:
    """Ring for new jobs that may begin."""
    queued = [job for job in submitted.jobs if job.state is JobState.QUEUED]
    if queued and not submitted.again:
        background.add_task(parts.ring, *queued)


def _replayed(submitted: Submitted) -> dict[str, str]:
    return {REPLAYED: "true"} if submitted.again else {}
