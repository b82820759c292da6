"""Jobs, as a worker sees them: claimed, kept by a lease, and brought to an end."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import and_, or_, true, update

from storage.catalogue.part import Part
from storage.catalogue.rows import insert_derived
from storage.clock import now
from storage.dicom_series import enter_stored
from storage.errors import JobCancelled, LeaseLost
from storage.jobs import Artifact, Job, JobState, Progress
from storage.records import DerivedVolume, StoredVolume, VolumeState
from storage.tables import job_of, jobs, volumes
from storage.transitions import (
    QUEUED_NOW,
    as_cancelled,
    change_jobs,
    change_volume,
    close_volume,
    end_attempt,
    lock_ids,
    owned,
    refusal,
    release_dependents,
    requeue,
    ring_pause,
    ripe,
    take_back,
    waiting_for,
)

RETRY_PAUSE_S = 5.0
"""Pause before the second attempt after a retryable error; four times as long before each further one."""


class Attempts(Part):
    """What workers, and the sweep, do with jobs."""

    def claim(
        self, job_id: str, worker: str, lease_s: float, *, kinds: Collection[str] | None = None
    ) -> Job | None:
        """Take a job that is queued, or whose worker let its lease run out; None when it cannot be had.

        A job of another kind than `kinds` (None: all) is left for a worker that can do it.
        """
        able = true() if kinds is None else jobs.c.kind.in_(kinds)
        free = and_(jobs.c.state == JobState.QUEUED, ripe())
        abandoned = and_(
            jobs.c.state == JobState.RUNNING,
            jobs.c.lease_until < now(),
            jobs.c.attempt < jobs.c.max_attempts,
        )
        with self._database.writing() as connection:
            claimed = change_jobs(
                connection,
                jobs.c.id == job_id,
                able,
                or_(free, abandoned),
                state=JobState.RUNNING,
                attempt=jobs.c.attempt + 1,
                lease_until=now() + lease_s,
                worker=worker,
                started_at=now(),
                progress=None,
            )
        return claimed[0] if claimed else None

    def heartbeat(self, job_id: str, attempt: int, lease_s: float, progress: Progress | None) -> None:
        """Renew the lease and record the progress, if any.

        Raises JobCancelled (the lease is renewed: the job is still to be wound up) or LeaseLost.
        """
        changes: dict[str, Any] = {"lease_until": now() + lease_s}
        if progress is not None:
            marks = {"revision": jobs.c.revision + 1, "changed_at": now()}
            changes |= {"progress": asdict(progress), **marks}
        renew = update(jobs).where(*owned(job_id, attempt)).values(**changes).returning(jobs.c.state)
        with self._database.writing() as connection:
            state = connection.execute(renew).scalar()
        if state is None:
            raise LeaseLost(job_id, attempt)
        if state == JobState.CANCELLING:
            raise JobCancelled(job_id)

    def finish(
        self,
        job_id: str,
        attempt: int,
        result: Mapping[str, Any],
        *,
        artifacts: Sequence[Artifact] = (),
        volume: StoredVolume | None = None,
        store: str | None = None,
        derived: DerivedVolume | None = None,
    ) -> Job:
        """Publish an attempt: the job `succeeded`; if it is a volume's ingest, the volume `ready`; if it has
        `derived` a volume, that one too.

        Raises LeaseLost for a late attempt, and JobCancelled when somebody has asked for the job to stop:
        then nothing is published, and the job waits for `cancelled`. Raises ValueError for a result that
        is not finite JSON.
        """
        with self._database.writing() as connection:
            finished = change_jobs(
                connection,
                *owned(job_id, attempt, JobState.RUNNING),
                state=JobState.SUCCEEDED,
                ended_at=now(),
                result=dict(result),
                artifacts=[asdict(artifact) for artifact in artifacts],
                lease_until=None,
            )
            if not finished:
                raise refusal(connection, job_id, attempt)
            connection.execute(
                change_volume(VolumeState.VALIDATING, volumes.c.ingest_job == job_id).values(
                    state=VolumeState.READY, stored=None if volume is None else volume.to_json(), store=store
                )
            )
            if volume is not None and finished[0].volume_id is not None:
                enter_stored(connection, finished[0].volume_id, finished[0].project_id, volume)
            if derived is not None:
                insert_derived(connection, finished[0], derived)
            change_jobs(connection, *waiting_for(job_id), **QUEUED_NOW)
        return finished[0]

    def fail(
        self,
        job_id: str,
        attempt: int,
        error: Mapping[str, Any],
        *,
        retry_pause_s: float = RETRY_PAUSE_S,
        quarantine: bool = False,
    ) -> Job:
        """Record an attempt's error (`{"code", "detail", "retryable", ...}`).

        The job goes back to the queue, with a growing pause, when the error is retryable and attempts are
        left; otherwise it has `failed`. One that was asked to stop is `cancelled`. With `quarantine` its
        volume, if ready, is closed for this error in the same transaction. Raises LeaseLost.
        """
        pause = retry_pause_s * 4 ** (attempt - 1) * random.uniform(0.8, 1.2)
        with self._database.writing() as connection:
            retried = requeue(connection, job_id, attempt, pause) if error["retryable"] else []
            ended = [] if retried else end_attempt(connection, job_id, attempt, error)
            if not (retried or ended):
                raise LeaseLost(job_id, attempt)
            (job,) = retried or ended
            if quarantine and job.volume_id is not None:
                close_volume(connection, job.volume_id, error)
            if ended:
                release_dependents(connection, job)
        return job

    def cancelled(self, job_id: str, attempt: int) -> Job:
        """Record that an attempt stopped as it was asked to. Raises LeaseLost."""
        with self._database.writing() as connection:
            stopped = change_jobs(connection, *owned(job_id, attempt, JobState.CANCELLING), **as_cancelled())
            if not stopped:
                raise LeaseLost(job_id, attempt)
            release_dependents(connection, stopped[0])
        return stopped[0]

    def sweep(self, *, ring_after_s: float = 30.0) -> list[Job]:
        """Take back jobs whose workers are gone, and say for which jobs to ring now.

        A job is rung again `ring_after_s` after its last ring, then twice as long each time, up to ten
        minutes. Call `rang` with those whose message was sent: for the others the next ring comes after
        five seconds. Any number of processes may sweep: each job is handed to one of them.
        """
        with self._database.writing() as connection:
            take_back(connection)
            quiet_for = now() - jobs.c.rung_at
            due = [
                jobs.c.state == JobState.QUEUED,
                ripe(),
                or_(jobs.c.rung_at.is_(None), quiet_for >= ring_pause(ring_after_s)),
            ]
            # The new `rung_at` keeps other sweepers away for a pause, whatever comes of this ring.
            statement = (
                update(jobs)
                .where(jobs.c.id.in_(lock_ids(connection, due)), *due)
                .values(rung_at=now())
                .returning(jobs)
            )
            return sorted((job_of(row) for row in connection.execute(statement)), key=lambda job: job.id)

    def rang(self, job_ids: Iterable[str]) -> None:
        """Record that the doorbell was rung for these jobs."""
        with self._database.writing() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(lock_ids(connection, [jobs.c.id.in_(list(job_ids))])))
                .values(rung_at=now(), rings=jobs.c.rings + 1)
            )
