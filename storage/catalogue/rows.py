"""Rows that several parts of the catalogue read and write, in a transaction that is open."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from storage.clock import now
from storage.dicom_series import enter_stored
from storage.errors import JobExpired, MissingJob, MissingVolume, UnknownKind, VolumeNotReady
from storage.ids import derived_id
from storage.jobs import Job, JobKind
from storage.records import DerivedVolume, VolumeRecord, VolumeState
from storage.tables import job_of, jobs, kinds, newest_kinds, tombstones, volume_of, volumes

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
    """One job. Raises JobExpired for one that was removed, MissingJob also for one of another project."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise _absence(connection, job_id, project_id)
    if project_id not in (None, row.project_id):
        raise MissingJob(job_id)
    return job_of(row)


def job_rows(connection: Connection, job_ids: Sequence[str]) -> tuple[Job, ...]:
    """These jobs, in this order. Raises JobExpired or MissingJob as `job_row` does."""
    rows = connection.execute(select(jobs).where(jobs.c.id.in_(job_ids)))
    found = {row.id: job_of(row) for row in rows}
    for job_id in job_ids:
        if job_id not in found:
            raise _absence(connection, job_id, None)
    return tuple(found[job_id] for job_id in job_ids)


def _absence(connection: Connection, job_id: str, project_id: str | None) -> MissingJob:
    """Why a job is not there."""
    owner = connection.execute(
        select(tombstones.c.project_id).where(tombstones.c.id == job_id)
    ).scalar_one_or_none()
    gone = owner is not None and project_id in (None, owner)
    return JobExpired(job_id) if gone else MissingJob(job_id)


def known_kinds(connection: Connection) -> list[JobKind]:
    """The newest version of each announced kind, by name."""
    return newest_kinds(connection.execute(select(kinds.c.document)).scalars())


def known_kind(connection: Connection, name: str) -> JobKind:
    """The newest version of one kind. Raises UnknownKind."""
    known = {kind.name: kind for kind in known_kinds(connection)}
    if name not in known:
        raise UnknownKind(name, sorted(known))
    return known[name]


def awaited_ingests(
    connection: Connection, volume_ids: Collection[str], project_id: str
) -> dict[str, str | None]:
    """By volume the ingest job that a new job on it must wait for; None when the volume is ready.

    Locks the volumes' rows, so that no ingest can end before the new jobs have been written. Raises
    MissingVolume, or VolumeNotReady for a rejected or quarantined one.
    """
    wanted = sorted(volume_ids)
    statement = select(volumes).where(volumes.c.id.in_(wanted)).order_by(volumes.c.id).with_for_update()
    found = {row.id: volume_of(row) for row in connection.execute(statement)} if wanted else {}
    return {volume_id: _awaited(volume_id, found.get(volume_id), project_id) for volume_id in wanted}


def _awaited(volume_id: str, volume: VolumeRecord | None, project_id: str) -> str | None:
    if volume is None or volume.state is VolumeState.DELETED or volume.project_id != project_id:
        raise MissingVolume(volume_id)
    if volume.state is VolumeState.VALIDATING:
        return volume.ingest_job
    if volume.state is not VolumeState.READY:
        raise VolumeNotReady(volume_id, volume.state)
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
    enter_stored(connection, derived_id(job.id), job.project_id, stored)


def insert_job(connection: Connection, **values: Any) -> Job:
    """A new job; rung for at once by its maker, or by the sweep."""
    statement = insert(jobs).values(max_attempts=MAX_ATTEMPTS, created_at=now(), rung_at=now(), **values)
    return job_of(connection.execute(statement.returning(jobs)).one())


def insert_jobs(connection: Connection, rows: Sequence[dict[str, Any]]) -> tuple[Job, ...]:
    """New jobs with the same columns, in one statement, in this order."""
    statement = insert(jobs).values(max_attempts=MAX_ATTEMPTS, created_at=now(), rung_at=now())
    made = connection.execute(statement.returning(jobs, sort_by_parameter_order=True), rows)
    return tuple(job_of(row) for row in made)
