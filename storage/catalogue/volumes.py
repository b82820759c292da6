"""Volumes: entered with the job that will read them, found, listed and closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, String, cast, insert, or_, select, update

from storage.catalogue.part import Part
from storage.catalogue.requests import is_first, made_before
from storage.catalogue.rows import INGEST, insert_job, job_row, volume_row
from storage.clock import now
from storage.ids import new_id
from storage.jobs import TERMINAL, Job, JobState, Queue, RequestKey
from storage.quotas import refuse_bytes
from storage.records import Received, VolumeRecord, VolumeState
from storage.tables import DEFAULT_PROJECT, jobs, volume_of, volumes
from storage.transitions import cancel_jobs, close_volume
from storage.upload_errors import VolumeInUse


class VolumeRows(Part):
    """What the catalogue knows of volumes."""

    def create_volume(
        self,
        upload: Received,
        *,
        name: str,
        scan_format: str,
        project_id: str = DEFAULT_PROJECT,
        submitted_by: str | None = None,
        trace: str | None = None,
        request: RequestKey | None = None,
    ) -> tuple[VolumeRecord, Job]:
        """One transaction: a `validating` volume for an upload, and the `queued` job that will ingest it.

        With the key of a request that was done before: that one's volume and job. Raises QuotaExceeded, or
        KeyReused; MissingVolume or JobExpired for what has been removed since.
        """
        with self._database.writing() as connection:
            if request and not is_first(self._database, connection, project_id, request, [upload.volume_id]):
                earlier = made_before(connection, project_id, request) or []
                volume = volume_row(connection, earlier[0])
                return volume, job_row(connection, volume.ingest_job)
            refuse_bytes(connection, project_id, upload.size)
            return insert_volume(
                connection,
                upload,
                name=name,
                scan_format=scan_format,
                project_id=project_id,
                submitted_by=submitted_by,
                trace=trace,
            )

    def volume(self, volume_id: str, *, project_id: str | None = None) -> VolumeRecord:
        """One volume. Raises MissingVolume, also for one of another project than the one named."""
        with self._database.reading() as connection:
            return volume_row(connection, volume_id, project_id)

    def volumes(
        self,
        *,
        project_id: str | None = None,
        sha256: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[VolumeRecord]:
        """The newest volumes, or those before the volume `before`; with `sha256` those of such an upload.

        Deleted ones are left out. Without a project: those of all.
        """
        wanted = {volumes.c.project_id: project_id, volumes.c.source_sha256: sha256}
        conditions = [column == value for column, value in wanted.items() if value is not None]
        conditions.append(volumes.c.state != VolumeState.DELETED)
        if before is not None:
            conditions.append(volumes.c.id < before)
        statement = select(volumes).where(*conditions).order_by(volumes.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [volume_of(row) for row in connection.execute(statement)]

    def quarantine(self, volume_id: str, error: Mapping[str, Any]) -> VolumeRecord:
        """Close a ready volume whose bytes proved corrupt; any other stays as it is. Raises MissingVolume."""
        with self._database.writing() as connection:
            close_volume(connection, volume_id, error)
            return volume_row(connection, volume_id)

    def delete_volume(self, volume_id: str, *, project_id: str | None = None, force: bool = False) -> None:
        """Delete a volume; its bytes are removed when no job uses it any more. Its row stays.

        Raises MissingVolume, or VolumeInUse while jobs that have not ended use it; with `force` those are
        cancelled.
        """
        with self._database.writing() as connection:
            connection.execute(select(volumes.c.id).where(volumes.c.id == volume_id).with_for_update())
            volume_row(connection, volume_id, project_id)
            users = _users(connection, volume_id)
            if users and not force:
                raise VolumeInUse(volume_id, users)
            cancel_jobs(connection, jobs.c.id.in_(users))
            connection.execute(
                update(volumes)
                .where(volumes.c.id == volume_id)
                .values(state=VolumeState.DELETED, revision=volumes.c.revision + 1)
            )

    def deleted_volumes(self, limit: int = 200) -> list[VolumeRecord]:
        """Volumes that were deleted, whose bytes are still there, and that no job uses any more."""
        statement = (
            select(volumes)
            .where(volumes.c.state == VolumeState.DELETED, volumes.c.store.is_not(None))
            .order_by(volumes.c.id)
            .limit(limit)
        )
        with self._database.reading() as connection:
            found = [volume_of(row) for row in connection.execute(statement)]
            return [volume for volume in found if not _users(connection, volume.id)]

    def removed_bytes(self, volume_id: str) -> None:
        """Record that the bytes of a deleted volume are gone."""
        gone = (volumes.c.id == volume_id, volumes.c.state == VolumeState.DELETED)
        with self._database.writing() as connection:
            connection.execute(update(volumes).where(*gone).values(store=None))


def insert_volume(
    connection: Connection,
    upload: Received,
    *,
    name: str,
    scan_format: str,
    project_id: str,
    submitted_by: str | None = None,
    trace: str | None = None,
) -> tuple[VolumeRecord, Job]:
    """A `validating` volume for an upload, and the `queued` job that will ingest it."""
    job_id = new_id("job")
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
            project_id=project_id,
        )
        .returning(volumes)
    ).one()
    job = insert_job(
        connection,
        id=job_id,
        kind=INGEST,
        state=JobState.QUEUED,
        parameters={"scan_format": scan_format},
        volume_id=upload.volume_id,
        queue=Queue.INTERACTIVE,
        project_id=project_id,
        submitted_by=submitted_by,
        trace=trace,
    )
    return volume_of(row), job


def _users(connection: Connection, volume_id: str) -> list[str]:
    """Jobs that have not ended and use a volume: as theirs, or as a row of a cohort."""
    named = cast(jobs.c.parameters, String).contains(volume_id, autoescape=True)
    statement = select(jobs.c.id).where(
        jobs.c.state.not_in(TERMINAL), or_(jobs.c.volume_id == volume_id, named)
    )
    return list(connection.execute(statement.order_by(jobs.c.id)).scalars())
