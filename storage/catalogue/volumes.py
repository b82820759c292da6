"""Volumes: entered with the job that will read them, found, listed and closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select

from storage.catalogue.part import Part
from storage.catalogue.rows import INGEST, insert_job, volume_row
from storage.clock import now
from storage.ids import new_id
from storage.jobs import Job, JobState, Queue
from storage.records import Received, VolumeRecord, VolumeState
from storage.tables import DEFAULT_PROJECT, volume_of, volumes
from storage.transitions import close_volume


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
    ) -> tuple[VolumeRecord, Job]:
        """One transaction: a `validating` volume for an upload, and the `queued` job that will ingest it."""
        job_id = new_id("job")
        with self._database.writing() as connection:
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
            )
        return volume_of(row), job

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
