"""The one truth about volumes, jobs, kinds and workers: SQLAlchemy Core over SQLite or PostgreSQL.

Every change of a job is one compare-and-set on its state, and on its attempt where a worker speaks, so
that lost, doubled and late messages do no harm: those statements stand in storage/transitions.py. Any
method raises CatalogueUnavailable while the database does not answer, StorageFull while its disk is full.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    case,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from storage.clock import now
from storage.database import open_engine, translated
from storage.errors import JobCancelled, LeaseLost, MissingJob, MissingVolume, UnknownKind, VolumeNotReady
from storage.ids import derived_id, new_id
from storage.jobs import OWNED, Artifact, Job, JobKind, JobState, Progress, Queue, WorkerRecord
from storage.records import DerivedVolume, Received, StoredVolume, VolumeRecord, VolumeState
from storage.tables import (
    document_of,
    job_of,
    jobs,
    kinds,
    newest_kinds,
    volume_of,
    volumes,
    worker_of,
    workers,
)
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

INGEST = "ingest"
"""The kind of the job that turns an upload into a volume; the only one that the catalogue knows by name."""
MAX_ATTEMPTS = 3
RETRY_PAUSE_S = 5.0
"""Pause before the second attempt after a retryable error; four times as long before each further one."""


class Catalogue:
    """Volumes, kinds, workers and jobs. Safe for threads; open it anew in every process, after a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(reading=True)

    @classmethod
    def open(cls, url: str) -> Catalogue:
        """The catalogue at a SQLAlchemy URL; makes its tables where they are missing."""
        return cls(open_engine(url))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ping(self) -> None:
        """Ask the database for an answer."""
        with self._reading() as connection:
            connection.execute(select(literal(1)))

    # Volumes

    def create_volume(self, upload: Received, *, name: str, scan_format: str) -> tuple[VolumeRecord, Job]:
        """One transaction: a `validating` volume for an upload, and the `queued` job that will ingest it."""
        job_id = new_id("job")
        with self._writing() as connection:
            row = connection.execute(
                insert(volumes)
                .values(
                    id=upload.volume_id,
                    name=name,
                    state=VolumeState.VALIDATING,
                    created_at=now(),
                    source_bytes=upload.size,
                    source_sha256=upload.sha256,
                    ingest_job=job_id,
                )
                .returning(volumes)
            ).one()
            job = _insert_job(
                connection,
                id=job_id,
                kind=INGEST,
                state=JobState.QUEUED,
                parameters={"scan_format": scan_format},
                volume_id=upload.volume_id,
                queue=Queue.INTERACTIVE,
            )
        return volume_of(row), job

    def volume(self, volume_id: str) -> VolumeRecord:
        """One volume. Raises MissingVolume."""
        with self._reading() as connection:
            return _volume(connection, volume_id)

    def volumes(
        self, *, sha256: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[VolumeRecord]:
        """The newest volumes, or those before the volume `before`; with `sha256` those of such an upload."""
        older = true() if before is None else volumes.c.id < before
        sent = true() if sha256 is None else volumes.c.source_sha256 == sha256
        statement = select(volumes).where(older, sent).order_by(volumes.c.id.desc()).limit(limit)
        with self._reading() as connection:
            return [volume_of(row) for row in connection.execute(statement)]

    def quarantine(self, volume_id: str, error: Mapping[str, Any]) -> VolumeRecord:
        """Close a ready volume whose bytes proved corrupt; any other stays as it is. Raises MissingVolume."""
        with self._writing() as connection:
            close_volume(connection, volume_id, error)
            return _volume(connection, volume_id)

    # Workers and what they can do

    def announce(self, worker: str, announced: Sequence[JobKind], device: str) -> None:
        """Record a worker and the kinds that it runs; to be called at its start."""
        with self._writing() as connection:
            for kind in sorted(announced, key=lambda kind: (kind.name, kind.version)):
                document = document_of(kind)
                key = {"name": kind.name, "version": kind.version}
                self._upsert(connection, kinds, key, {"announced_at": now(), "document": document})
            record = {"device": device, "kinds": [kind.name for kind in announced], "last_seen": now()}
            self._upsert(connection, workers, {"name": worker}, record)

    def worker_seen(self, worker: str) -> None:
        """Record that an announced worker is alive."""
        with self._writing() as connection:
            connection.execute(update(workers).where(workers.c.name == worker).values(last_seen=now()))

    def workers(self) -> list[WorkerRecord]:
        """All workers that ever announced themselves, by name; `last_seen` tells the living."""
        with self._reading() as connection:
            return [worker_of(row) for row in connection.execute(select(workers).order_by(workers.c.name))]

    def idle_workers(self, kind: str, seen_within_s: float) -> list[str]:
        """Names of the workers that were seen so lately, can run such jobs, and run none."""
        busy = select(jobs.c.worker).where(jobs.c.state.in_(OWNED), jobs.c.worker.is_not(None))
        idle = select(workers).where(workers.c.last_seen > now() - seen_within_s, workers.c.name.not_in(busy))
        with self._reading() as connection:
            found = [worker_of(row) for row in connection.execute(idle.order_by(workers.c.name))]
        return [worker.name for worker in found if kind in worker.kinds]

    def kinds(self) -> list[JobKind]:
        """The newest version of each announced kind, by name."""
        with self._reading() as connection:
            return _kinds(connection)

    def kind(self, name: str) -> JobKind:
        """The newest version of one kind. Raises UnknownKind."""
        with self._reading() as connection:
            return _kind(connection, name)

    # Jobs, as the web sees them

    def submit(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        volume_id: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Job:
        """A new job, `queued`, or `waiting` while its volume is validating.

        The caller rings for a queued one, then calls `rang`. Raises UnknownKind, MissingVolume, or
        VolumeNotReady for a rejected or quarantined volume.
        """
        with self._writing() as connection:
            known = _kind(connection, kind)
            ingest = None if volume_id is None else _awaited_ingest(connection, volume_id)
            return _insert_job(
                connection,
                id=new_id("job"),
                kind=kind,
                state=JobState.QUEUED if ingest is None else JobState.WAITING,
                parameters=dict(parameters),
                volume_id=volume_id,
                queue=known.queue,
                depends_on=ingest,
                labels=dict(labels or {}),
            )

    def job(self, job_id: str) -> Job:
        """One job. Raises MissingJob."""
        with self._reading() as connection:
            return _job(connection, job_id)

    def jobs(
        self,
        *,
        state: JobState | None = None,
        kind: str | None = None,
        volume_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Job]:
        """The newest jobs that fit, or those before the job `before`."""
        wanted = {jobs.c.state: state, jobs.c.kind: kind, jobs.c.volume_id: volume_id}
        conditions = [column == value for column, value in wanted.items() if value is not None]
        if before is not None:
            conditions.append(jobs.c.id < before)
        statement = select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(limit)
        with self._reading() as connection:
            return [job_of(row) for row in connection.execute(statement)]

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a job that has not begun at once; ask a running one to stop; leave an ended one as it is.

        Raises MissingJob.
        """
        running = jobs.c.state == JobState.RUNNING
        with self._writing() as connection:
            changed = change_jobs(
                connection,
                jobs.c.id == job_id,
                jobs.c.state.in_([JobState.WAITING, JobState.QUEUED, JobState.RUNNING]),
                state=case((running, JobState.CANCELLING), else_=JobState.CANCELLED),
                ended_at=case((running, None), else_=now()),
            )
            for job in changed:
                if job.state is JobState.CANCELLED:
                    release_dependents(connection, job)
            return changed[0] if changed else _job(connection, job_id)

    # Jobs, as a worker sees them

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
        with self._writing() as connection:
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
            changes |= {"progress": asdict(progress), "revision": jobs.c.revision + 1}
        renew = update(jobs).where(*owned(job_id, attempt)).values(**changes).returning(jobs.c.state)
        with self._writing() as connection:
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
        with self._writing() as connection:
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
            if derived is not None:
                _insert_derived(connection, job_id, derived)
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
        with self._writing() as connection:
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
        with self._writing() as connection:
            stopped = change_jobs(connection, *owned(job_id, attempt, JobState.CANCELLING), **as_cancelled())
            if not stopped:
                raise LeaseLost(job_id, attempt)
            release_dependents(connection, stopped[0])
        return stopped[0]

    # Keeping the queue moving

    def sweep(self, *, ring_after_s: float = 30.0) -> list[Job]:
        """Take back jobs whose workers are gone, and say for which jobs to ring now.

        A job is rung again `ring_after_s` after its last ring, then twice as long each time, up to ten
        minutes. Call `rang` with those whose message was sent: for the others the next ring comes after
        five seconds. Any number of processes may sweep: each job is handed to one of them.
        """
        with self._writing() as connection:
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
        with self._writing() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(lock_ids(connection, [jobs.c.id.in_(list(job_ids))])))
                .values(rung_at=now(), rings=jobs.c.rings + 1)
            )

    # Connections

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with translated(), self._engine.begin() as connection:
            yield connection

    def _upsert(
        self, connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        connection.execute(
            dialect.insert(table)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=list(key), set_=dict(values))
        )


def _volume(connection: Connection, volume_id: str) -> VolumeRecord:
    row = connection.execute(select(volumes).where(volumes.c.id == volume_id)).first()
    if row is None:
        raise MissingVolume(volume_id)
    return volume_of(row)


def _job(connection: Connection, job_id: str) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise MissingJob(job_id)
    return job_of(row)


def _kinds(connection: Connection) -> list[JobKind]:
    return newest_kinds(connection.execute(select(kinds.c.document)).scalars())


def _kind(connection: Connection, name: str) -> JobKind:
    known = {kind.name: kind for kind in _kinds(connection)}
    if name not in known:
        raise UnknownKind(name, sorted(known))
    return known[name]


def _awaited_ingest(connection: Connection, volume_id: str) -> str | None:
    """The ingest job that a new job on this volume must wait for; None when the volume is ready.

    Locks the volume's row, so that its ingest cannot end before the new job has been written.
    """
    row = connection.execute(select(volumes).where(volumes.c.id == volume_id).with_for_update()).first()
    if row is None:
        raise MissingVolume(volume_id)
    if row.state == VolumeState.VALIDATING:
        return str(row.ingest_job)
    if row.state != VolumeState.READY:
        raise VolumeNotReady(volume_id, row.state)
    return None


def _insert_derived(connection: Connection, job_id: str, made: DerivedVolume) -> None:
    stored = made.stored
    connection.execute(
        insert(volumes).values(
            id=derived_id(job_id),
            name=made.name,
            state=VolumeState.READY,
            created_at=now(),
            source_bytes=stored.voxel_bytes,
            source_sha256=stored.digest.removeprefix("sha256:"),
            ingest_job=job_id,
            stored=stored.to_json(),
            store=made.store,
        )
    )


def _insert_job(connection: Connection, **values: Any) -> Job:
    statement = insert(jobs).values(max_attempts=MAX_ATTEMPTS, created_at=now(), rung_at=now(), **values)
    return job_of(connection.execute(statement.returning(jobs)).one())
