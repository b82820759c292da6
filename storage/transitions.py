"""The changes of state that jobs and volumes go through, as statements of a transaction that is open.

Every change is a compare-and-set: it names the state, and the attempt, that it starts from. Locks are taken
in the order job, volume, waiting jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, case, cast, literal, or_, select, update

from storage.clock import now
from storage.errors import JobCancelled, LeaseLost
from storage.jobs import OWNED, Job, JobState
from storage.records import VolumeState
from storage.tables import job_of, jobs, volumes

UNHEARD_S = 5.0
"""A ring that nobody confirmed by `rang` is repeated after this: the broker was away."""
LONGEST_RING_PAUSE_S = 600.0
SWEEP_LIMIT = 1000

QUEUED_NOW: Mapping[str, Any] = {
    "state": JobState.QUEUED,
    "progress": None,
    "worker": None,
    "lease_until": None,
    "not_before": None,
    "rung_at": None,
    "rings": 0,
}
"""What a job that may run at once looks like: the next sweep rings for it."""


def change_jobs(connection: Connection, *where: ColumnElement[bool], **values: Any) -> list[Job]:
    """Change all jobs that fit, and return them as they are now."""
    marks = {"revision": jobs.c.revision + 1, "changed_at": now()}
    statement = update(jobs).where(*where).values(**marks, **values).returning(jobs)
    return [job_of(row) for row in connection.execute(statement)]


def change_volume(state: VolumeState, which: ColumnElement[bool]) -> Any:
    """The beginning of a change of a volume that is in `state`; goes on with `.values(...)`."""
    return update(volumes).where(which, volumes.c.state == state).values(revision=volumes.c.revision + 1)


def close_volume(connection: Connection, volume_id: str, error: Mapping[str, Any]) -> None:
    """Quarantine a volume if it is ready."""
    ready = change_volume(VolumeState.READY, volumes.c.id == volume_id)
    connection.execute(ready.values(state=VolumeState.QUARANTINED, error=dict(error)))


def ripe() -> ColumnElement[bool]:
    """That no pause before a retry is still running."""
    return or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now())


def owned(job_id: str, attempt: int, *states: JobState) -> list[ColumnElement[bool]]:
    """That an attempt still owns its job, in one of `states` (default: any in which a job is owned)."""
    return [jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state.in_(states or OWNED)]


def waiting_for(job_id: str) -> list[ColumnElement[bool]]:
    """That a job waits for this one."""
    return [jobs.c.depends_on == job_id, jobs.c.state == JobState.WAITING]


def as_failed(error: Mapping[str, Any]) -> dict[str, Any]:
    """What a job that failed looks like."""
    return {"state": JobState.FAILED, "ended_at": now(), "error": dict(error), "lease_until": None}


def as_cancelled() -> dict[str, Any]:
    """What a job that was cancelled looks like."""
    return {"state": JobState.CANCELLED, "ended_at": now(), "lease_until": None}


def requeue(connection: Connection, job_id: str, attempt: int, pause_s: float) -> list[Job]:
    """Put a running job with attempts left back into the queue, not to be claimed for a while."""
    return change_jobs(
        connection,
        *owned(job_id, attempt, JobState.RUNNING),
        jobs.c.attempt < jobs.c.max_attempts,
        **{**QUEUED_NOW, "not_before": now() + pause_s},
    )


def end_attempt(connection: Connection, job_id: str, attempt: int, error: Mapping[str, Any]) -> list[Job]:
    """End an owned job without a result: `cancelled` if that was asked for, else `failed`."""
    return [
        *change_jobs(connection, *owned(job_id, attempt, JobState.CANCELLING), **as_cancelled()),
        *change_jobs(connection, *owned(job_id, attempt, JobState.RUNNING), **as_failed(error)),
    ]


def refusal(connection: Connection, job_id: str, attempt: int) -> JobCancelled | LeaseLost:
    """Why an attempt may not finish: somebody cancelled it, or it no longer owns the job."""
    cancelling = connection.execute(select(jobs.c.id).where(*owned(job_id, attempt, JobState.CANCELLING)))
    return LeaseLost(job_id, attempt) if cancelling.first() is None else JobCancelled(job_id)


def cancel_jobs(connection: Connection, *which: ColumnElement[bool]) -> list[Job]:
    """Cancel jobs that have not begun at once; ask running ones to stop; leave ended ones as they are."""
    running = jobs.c.state == JobState.RUNNING
    changed = change_jobs(
        connection,
        *which,
        jobs.c.state.in_([JobState.WAITING, JobState.QUEUED, JobState.RUNNING]),
        state=case((running, JobState.CANCELLING), else_=JobState.CANCELLED),
        ended_at=case((running, None), else_=now()),
    )
    for job in changed:
        if job.state is JobState.CANCELLED:
            release_dependents(connection, job)
    return changed


def release_dependents(connection: Connection, job: Job) -> None:
    """What follows when a job failed or was cancelled: its volume is rejected, jobs that wait for it fail."""
    error = job.error or {"code": JobCancelled.code, "detail": str(JobCancelled(job.id)), "retryable": False}
    connection.execute(
        change_volume(VolumeState.VALIDATING, volumes.c.ingest_job == job.id).values(
            state=VolumeState.REJECTED, error=error
        )
    )
    rejection = {
        "code": "volume-rejected",
        "detail": f"the volume was rejected: {error['detail']}",
        "retryable": False,
        "volume_id": job.volume_id,
        "cause": error,
    }
    change_jobs(connection, *waiting_for(job.id), **as_failed(rejection))


def take_back(connection: Connection) -> None:
    """Jobs whose lease has run out: cancelled, queued again, or failed after the last attempt."""
    expired = [jobs.c.state.in_(OWNED), jobs.c.lease_until < now()]
    lost = [jobs.c.id.in_(lock_ids(connection, expired)), *expired]
    cancelling, running = jobs.c.state == JobState.CANCELLING, jobs.c.state == JobState.RUNNING
    last = jobs.c.attempt >= jobs.c.max_attempts
    error = {
        "code": "worker-lost",
        "detail": "the worker died or fell silent in every attempt; its log may say why",
        "retryable": True,
    }
    ended = change_jobs(connection, *lost, cancelling, **as_cancelled())
    ended += change_jobs(connection, *lost, running, last, **as_failed(error))
    for job in ended:
        release_dependents(connection, job)
    change_jobs(connection, *lost, running, **QUEUED_NOW)


def lock_ids(connection: Connection, where: Iterable[ColumnElement[bool]]) -> list[str]:
    """The ids of jobs that fit and that no other transaction is changing (SQLite: it is the only writer)."""
    statement = select(jobs.c.id).where(*where).limit(SWEEP_LIMIT).with_for_update(skip_locked=True)
    return list(connection.execute(statement).scalars())


def ring_pause(first_s: float) -> ColumnElement[float]:
    """After one ring `first_s`, twice as long after each further one, ten minutes at most."""
    pauses = [min(first_s, UNHEARD_S), *(min(first_s * 2**ring, LONGEST_RING_PAUSE_S) for ring in range(12))]
    steps = [(jobs.c.rings == rings, literal(pause)) for rings, pause in enumerate(pauses)]
    return cast(case(*steps, else_=literal(LONGEST_RING_PAUSE_S)), Double)
