"""Rows that several parts of the catalogue read and write, in a transaction that is open."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select

from storage.clock import now
from storage.errors import MissingJob, MissingVolume, UnknownKind, VolumeNotReady
from storage.ids import derived_id
from storage.jobs import Job, JobKind
from storage.records import DerivedVolume, VolumeRecord, VolumeState
from storage.tables import job_of, jobs, kinds, newest_kinds, volume_of, volumes

INGEST = "ingest"
"""The kind of the job that turns an upload into a volume; the only one that the catalogue knows by name."""
MAX_ATTEMPTS = 3


def volume_row(connection: Connection, volume_id: str, project_id: str | None = None) -> VolumeRecord:
    """One volume. Raises MissingVolume, also for one that was deleted or is of another project."""
    row = connection.execute(select(volumes).where(volumes.c.id == volume_id)).first()
    if row is None or row.state == VolumeState.DELETED or project_id not in (None, row.project_id):
        raise MissingVolume(volume_id)
    return volume_of(row)


def job_row(connection: Connection, job_id: str, project_id: str | None = None) -> Job:
    """One job. Raises MissingJob, also for one of another project."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None or project_id not in (None, row.project_id):
        raise MissingJob(job_id)
    return job_of(row)


def known_kinds(connection: Connection) -> list[JobKind]:
    """The newest version of each announced kind, by name."""
    return newest_kinds(connection.execute(select(kinds.c.document)).scalars())


def known_kind(connection: Connection, name: str) -> JobKind:
    """The newest version of one kind. Raises UnknownKind."""
    known = {kind.name: kind for kind in known_kinds(connection)}
    if name not in known:
        raise UnknownKind(name, sorted(known))
    return known[name]


def awaited_ingest(connection: Connection, volume_id: str, project_id: str) -> str | None:
    """The ingest job that a new job on this volume must wait for; None when the volume is ready.

    Locks the volume's row, so that its ingest cannot end before the new job has been written. Raises
    MissingVolume, or VolumeNotReady for a rejected or quarantined one.
    """
    row = connection.execute(select(volumes).where(volumes.c.id == volume_id).with_for_update()).first()
    if row is None or row.state == VolumeState.DELETED or row.project_id != project_id:
        raise MissingVolume(volume_id)
    if row.state == VolumeState.VALIDATING:
        return str(row.ingest_job)
    if row.state != VolumeState.READY:
        raise VolumeNotReady(volume_id, row.state)
    return None


def insert_derived(connection: Connection, job: Job, made: DerivedVolume) -> None:
    """The volume that a job made of another one, in the job's project."""
    stored = made.stored
    connection.execute(
        insert(volumes).values(
            id=derived_id(job.id),
            name=made.name,
            state=VolumeState.READY,
            created_at=now(),
            source_bytes=stored.voxel_bytes,
            source_sha256=stored.digest.removeprefix("sha256:"),
            ingest_job=job.id,
            project_id=job.project_id,
            stored=stored.to_json(),
            store=made.store,
        )
    )


def insert_job(connection: Connection, **values: Any) -> Job:
    """A new job; rung for at once by its maker, or by the sweep."""
    statement = insert(jobs).values(max_attempts=MAX_ATTEMPTS, created_at=now(), rung_at=now(), **values)
    return job_of(connection.execute(statement.returning(jobs)).one())
