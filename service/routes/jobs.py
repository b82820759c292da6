"""Jobs: watch, list, cancel and remove them, and fetch what they made."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response

from service.clinical.forms import RESULT_FORMS, result_answer
from service.conditional import (
    PageSize,
    PageToken,
    decode_token,
    file_answer,
    json_answer,
    next_link,
    page,
)
from service.deps import FoundJob, Parts, needs
from service.described import CONDITIONAL, PARTIAL, UNCHANGED, a_file, a_job, problems
from service.job_answers import SeenJob, accepted, polled, shown
from service.job_filters import wanted_jobs
from service.schemas import PROBLEMS, JobPage, JobView
from storage.access import Scope
from storage.clearing import clear
from storage.errors import JobFailed, JobNotFinished, MissingArtifact
from storage.jobs import Artifact, Job, JobFilter, JobState

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS, dependencies=[needs(Scope.JOBS_READ)]
)
_WRITING = [needs(Scope.JOBS_WRITE)]


@router.get(
    "",
    response_model=JobPage,
    responses=UNCHANGED | problems(401, 403, 422, 429, 503),
    openapi_extra=CONDITIONAL,
)
def list_jobs(
    request: Request,
    parts: Parts,
    wanted: Annotated[JobFilter, Depends(wanted_jobs)],
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> Response:
    """The jobs, newest first; parameters that are long lists are left out."""
    rows = parts.catalogue.jobs(limit=page_size + 1, before=decode_token(page_token), **wanted)
    listed, token = page(rows, page_size)
    document = JobPage(jobs=[shown(parts, row, brief=True) for row in listed], next_page_token=token)
    return json_answer(request, document, headers=next_link(request, token))


@router.get(
    "/{job_id}",
    response_model=JobView,
    responses={
        **a_job({200: "the job"}),
        **UNCHANGED,
        **problems(401, 403, 404, 410, 422, 429, 503),
    },
    openapi_extra=CONDITIONAL,
)
async def get_job(
    request: Request,
    seen: SeenJob,
    brief: Annotated[bool, Query(description="leave out parameters that are long lists")] = False,
) -> Response:
    """One job. Poll with `If-None-Match`; `Retry-After` says when to come back."""
    return polled(request, *seen, brief=brief)


@router.delete(
    "/{job_id}",
    status_code=204,
    response_class=Response,
    responses=problems(401, 403, 404, 409, 410, 429, 503),
    dependencies=_WRITING,
)
def remove_job(job: FoundJob, parts: Parts, background: BackgroundTasks) -> Response:
    """Remove a job that has ended, and what it wrote. A volume that it made stays."""
    parts.catalogue.remove_job(job.id)
    background.add_task(clear, parts.settings.data_root, parts.catalogue, [job.id])
    return Response(status_code=204, background=background)


@router.get(
    "/{job_id}/result",
    response_model=dict[str, Any],
    responses=RESULT_FORMS | UNCHANGED,
    openapi_extra=CONDITIONAL,
)
def get_result(request: Request, job: FoundJob, parts: Parts) -> Response:
    """What the job found: as JSON, and a prediction as FHIR or a DICOM structured report where `Accept` asks
    for it. 409 while there is nothing yet, and when there never will be.
    """
    if not job.state.terminal:
        raise JobNotFinished(job.id, job.state)
    if job.state is not JobState.SUCCEEDED:
        raise JobFailed(job.id, job.state, job.error)
    return result_answer(request, job, parts)


@router.head("/{job_id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses=a_file("the artifact's bytes", "*/*"),
    openapi_extra=PARTIAL,
)
def get_artifact(request: Request, job: FoundJob, parts: Parts, name: str) -> Response:
    """A file that the job wrote, as a download, whole or by `Range`."""
    artifact = _published(job, name)
    path = parts.artifacts.path(job.id, job.attempt, name)
    return file_answer(
        request,
        path,
        etag=f'"{artifact.sha256}"',
        media_type=artifact.media_type,
        headers={"Cache-Control": "private, max-age=3600", **_digests(request, artifact)},
        filename=name,
    )


def _published(job: Job, name: str) -> Artifact:
    """The artifact of this name of the attempt that finished. Raises MissingArtifact."""
    for artifact in job.artifacts:
        if artifact.name == name and job.state is JobState.SUCCEEDED:
            return artifact
    raise MissingArtifact(job.id, name)


def _digests(request: Request, artifact: Artifact) -> dict[str, str]:
    """RFC 9530: of the whole file always, of the content sent only where that is the whole file."""
    value = f"sha-256=:{base64.b64encode(bytes.fromhex(artifact.sha256)).decode()}:"
    whole = "range" not in request.headers
    return {"Repr-Digest": value, **({"Content-Digest": value} if whole else {})}


@router.post(
    "/{job_id}/cancel",
    response_model=JobView,
    responses=a_job({200: "the job, which has ended", 202: "the job, which is stopping"})
    | problems(401, 403, 404, 410, 429, 503),
    dependencies=_WRITING,
)
def cancel(job: FoundJob, parts: Parts) -> Response:
    """Ask for the job to stop: 202 while it is stopping, 200 when it has ended (also before)."""
    after = job if job.state.terminal else parts.catalogue.request_cancel(job.id)
    return accepted(parts, after, 200 if after.state.terminal else 202)
