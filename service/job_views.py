"""Jobs as they go over the wire."""

from __future__ import annotations

from typing import Any

from service.errors import plain, recorded_problem
from service.schemas import (
    ArtifactView,
    JobView,
    Problem,
    ProgressView,
    QueuePosition,
    WorkerView,
    timestamp,
)
from service.standing import UNKNOWN, Place, Standing
from storage.jobs import Artifact, Job, JobState

LONGEST_LIST = 16
"""Parameters with more items are left out where jobs are listed or watched."""


def job_view(job: Job, *, brief: bool = False, standing: Standing = UNKNOWN) -> JobView:
    """A job's row as it goes over the wire; a brief one leaves out lists such as a cohort's rows."""
    address = f"/v1/jobs/{job.id}"
    long = [name for name, value in job.parameters.items() if brief and _is_long(value)]
    error = recorded_problem(job.error, instance=address) if job.error else None
    progress = job.progress
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        parameters=plain({name: value for name, value in job.parameters.items() if name not in long}),
        left_out=long,
        volume_id=job.volume_id,
        queue=job.queue,
        queue_position=_queue_position(standing.place),
        created_at=timestamp(job.created_at) or "",
        started_at=timestamp(job.started_at),
        ended_at=timestamp(job.ended_at),
        expires_at=timestamp(standing.expires_at),
        progress=ProgressView(**vars(progress)) if progress else None,
        result=plain(job.result),
        error=Problem.model_validate(error) if error else None,
        artifacts=[_artifact_view(address, artifact) for artifact in job.artifacts],
        worker=None if job.worker is None else WorkerView(id=job.worker, device=standing.device),
        depends_on=job.depends_on,
        retry_of=job.retry_of,
        retried_by=job.retried_by,
        kind_version=job.kind_version,
        traceparent=job.trace,
        labels=job.labels,
        links=_job_links(address, job),
    )


def _queue_position(place: Place | None) -> QueuePosition | None:
    if place is None:
        return None
    return QueuePosition(ahead=place.ahead, position=place.ahead + 1, eta_seconds=place.eta_s)


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONGEST_LIST


def _artifact_view(address: str, artifact: Artifact) -> ArtifactView:
    return ArtifactView(**vars(artifact), href=f"{address}/artifacts/{artifact.name}")


def _job_links(address: str, job: Job) -> dict[str, str]:
    links = {"self": address, "events": f"{address}/events"}
    if job.volume_id is not None:
        links["volume"] = f"/v1/volumes/{job.volume_id}"
    if job.state is JobState.SUCCEEDED:
        links["result"] = f"{address}/result"
    if not job.state.terminal:
        links["cancel"] = f"{address}/cancel"
    elif job.state is not JobState.SUCCEEDED:
        links["retry"] = f"{address}/retry"
    for name, other in (("retry_of", job.retry_of), ("retried_by", job.retried_by)):
        if other is not None:
            links[name] = f"/v1/jobs/{other}"
    return links
