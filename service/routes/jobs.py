"""Jobs: submit, watch, cancel, and fetch what they made."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from fastapi.responses import JSONResponse

from service.clinical.forms import RESULT_FORMS, result_answer
from service.conditional import (
    PageSize,
    PageToken,
    decode_token,
    file_answer,
    json_answer,
    next_link,
    page,
    strong_etag,
)
from service.deps import FoundJob, Known, Parts, Services, found_volume, needs
from service.errors import ApiError
from service.identity import Principal
from service.parameters import checked
from service.schemas import PROBLEMS, JobPage, JobRequest, JobView, job_view
from storage.access import Scope
from storage.errors import JobFailed, JobNotFinished, MissingArtifact, UnknownKind
from storage.jobs import Artifact, Job, JobKind, JobState

_MAX_BODY_BYTES = 4 << 20
"""A cohort of 8,000 rows with a dozen covariates each."""

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS, dependencies=[needs(Scope.JOBS_READ)]
)
_WRITING = [needs(Scope.JOBS_WRITE)]


@router.post(
    "", status_code=202, response_model=JobView, max_body_size=_MAX_BODY_BYTES, dependencies=_WRITING
)
def submit(
    request: Request, wanted: JobRequest, background: BackgroundTasks, parts: Parts, who: Known
) -> Response:
    """Have a job done. On a volume that is still being read it waits until that is `ready`."""
    kind = _offered(parts, wanted.kind)
    if kind.needs_volume:
        _check_volume(parts, wanted.volume_id, who)
    parameters = checked(wanted.parameters, kind.parameters_schema)
    job = parts.catalogue.submit(
        kind.name,
        parameters,
        volume_id=wanted.volume_id,
        labels=wanted.labels,
        sender=who.sender(request),
    )
    if job.state is JobState.QUEUED:
        background.add_task(parts.ring, job)
    return _accepted(job, 202, background)


def _offered(parts: Services, name: str) -> JobKind:
    """The kind of this name. Raises UnknownKind, also for those that only the service submits."""
    kind = parts.catalogue.kind(name)
    if kind.internal:
        raise UnknownKind(name, [known.name for known in parts.catalogue.kinds() if not known.internal])
    return kind


def _check_volume(parts: Services, volume_id: str | None, who: Principal) -> None:
    """Refuse a job on no volume, or on one that does not exist."""
    if volume_id is None:
        detail = "volume_id: this kind of job needs the id of a volume"
        raise ApiError("invalid-request", detail, errors=[("/volume_id", "needed")])
    found_volume(volume_id, parts, who)


def _accepted(job: Job, status: int, background: BackgroundTasks | None = None) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", "ETag": _etag(job)}
    if not job.state.terminal:
        headers["Retry-After"] = "1"
    return JSONResponse(job_view(job).model_dump(mode="json"), status, headers, background=background)


def _etag(job: Job, *, brief: bool = False) -> str:
    return strong_etag(job.id, job.revision, *(["brief"] if brief else []))


@router.get("", response_model=JobPage)
def list_jobs(
    request: Request,
    parts: Parts,
    who: Known,
    state: JobState | None = None,
    kind: Annotated[str | None, Query(max_length=100)] = None,
    volume_id: Annotated[str | None, Query(max_length=100)] = None,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> Response:
    """The jobs, newest first; parameters that are long lists are left out."""
    rows = parts.catalogue.jobs(
        project_id=who.project_id,
        state=state,
        kind=kind,
        volume_id=volume_id,
        limit=page_size + 1,
        before=decode_token(page_token),
    )
    shown, token = page(rows, page_size)
    document = JobPage(jobs=[job_view(row, brief=True) for row in shown], next_page_token=token)
    return json_answer(request, document, headers=next_link(request, token))


@router.get("/{job_id}", response_model=JobView)
def get_job(
    request: Request,
    job: FoundJob,
    brief: Annotated[bool, Query(description="leave out parameters that are long lists")] = False,
) -> Response:
    """One job. Poll with `If-None-Match`; `Retry-After` says when to come back."""
    waiting = {} if job.state.terminal else {"Retry-After": "1"}
    return json_answer(request, job_view(job, brief=brief), etag=_etag(job, brief=brief), headers=waiting)


@router.get("/{job_id}/result", response_model=dict[str, Any], responses=RESULT_FORMS)
def get_result(request: Request, job: FoundJob, parts: Parts) -> Response:
    """What the job found: as JSON, and a prediction as FHIR or a DICOM structured report where `Accept` asks
    for it. 409 while there is nothing yet, and when there never will be.
    """
    if not job.state.terminal:
        raise JobNotFinished(job.id, job.state)
    if job.state is not JobState.SUCCEEDED:
        raise JobFailed(job.id, job.state, job.error)
    return result_answer(request, job, parts.catalogue)


@router.head("/{job_id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "the artifact's bytes"}},
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
    "/{job_id}/cancel", response_model=JobView, responses={202: {"model": JobView}}, dependencies=_WRITING
)
def cancel(job: FoundJob, parts: Parts) -> Response:
    """Ask for the job to stop: 202 while it is stopping, 200 when it has ended (also before)."""
    after = job if job.state.terminal else parts.catalogue.request_cancel(job.id)
    return _accepted(after, 200 if after.state.terminal else 202)
