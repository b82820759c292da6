"""Which volumes hold which DICOM series: an index of replaced UIDs, so that a study is found among many
volumes without reading the facts of each.

A row says where a volume belongs; whether the volume may be read, its own row says.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, func, insert, select

from storage.database import Database
from storage.errors import InvalidParameters
from storage.exports.dicom_header import Placement
from storage.exports.dicom_identity import Identity
from storage.records import StoredVolume, VolumeRecord, VolumeState
from storage.tables import dicom_series, volume_of, volumes

_READY = (volumes.c.state == VolumeState.READY, volumes.c.id == dicom_series.c.volume_id)


def enter(
    connection: Connection, volume_id: str, project_id: str, study: str, series: str, modality: str = ""
) -> None:
    """Enter the series of a volume, in the place of what was said of it before."""
    connection.execute(delete(dicom_series).where(dicom_series.c.volume_id == volume_id))
    connection.execute(
        insert(dicom_series).values(
            volume_id=volume_id, project_id=project_id, study=study, series=series, modality=modality
        )
    )


def enter_stored(connection: Connection, volume_id: str, project_id: str, stored: StoredVolume) -> None:
    """Enter a volume that is ready; one that DICOM cannot say is left out."""
    try:
        Placement.of(stored)
    except InvalidParameters:
        return
    identity = Identity.of(stored)
    enter(connection, volume_id, project_id, identity.study, identity.series, modality_of(stored))


def modality_of(stored: StoredVolume) -> str:
    """That which was kept; `OT` where none was."""
    return str(stored.metadata.get("Modality", "OT"))


class SeriesIndex:
    """Looks series up. Any method raises CatalogueUnavailable as the database does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enter_missing(self) -> int:
        """Enter ready volumes of which nothing is known, as those of an older database; how many."""
        known = select(dicom_series.c.volume_id)
        statement = select(volumes).where(volumes.c.state == VolumeState.READY, volumes.c.id.not_in(known))
        with self._database.reading() as connection:
            missing = [volume_of(row) for row in connection.execute(statement)]
        with self._database.writing() as connection:
            for record in missing:
                assert record.stored is not None
                enter_stored(connection, record.id, record.project_id, record.stored)
        return len(missing)

    def volumes(
        self, project_id: str, studies: Collection[str], series: Collection[str] | None = None
    ) -> list[VolumeRecord]:
        """The ready volumes of any of these studies, or of these series of them; newest first."""
        statement = select(volumes).where(
            *_READY, dicom_series.c.project_id == project_id, dicom_series.c.study.in_(studies)
        )
        if series is not None:
            statement = statement.where(dicom_series.c.series.in_(series))
        with self._database.reading() as connection:
            return [volume_of(row) for row in connection.execute(statement.order_by(volumes.c.id.desc()))]

    def holding(self, project_id: str, study: str, series: str) -> list[tuple[str, VolumeState, str | None]]:
        """(id, state, store) of the volumes that are, or are becoming, a series."""
        statement = select(volumes.c.id, volumes.c.state, volumes.c.store).where(
            volumes.c.id == dicom_series.c.volume_id,
            volumes.c.state.in_((VolumeState.READY, VolumeState.VALIDATING)),
            dicom_series.c.project_id == project_id,
            dicom_series.c.study == study,
            dicom_series.c.series == series,
        )
        with self._database.reading() as connection:
            return [(row.id, VolumeState(row.state), row.store) for row in connection.execute(statement)]

    def studies(
        self,
        project_id: str,
        *,
        studies: Collection[str] | None = None,
        series: Collection[str] | None = None,
        modality: str | None = None,
    ) -> list[str]:
        """The studies with a ready volume that is of one of these studies and series, and of this modality,
        as far as they are named; those with the newest such volumes first.
        """
        statement = (
            select(dicom_series.c.study)
            .where(*_READY, dicom_series.c.project_id == project_id)
            .group_by(dicom_series.c.study)
            .order_by(func.max(dicom_series.c.volume_id).desc())
        )
        if studies is not None:
            statement = statement.where(dicom_series.c.study.in_(studies))
        if series is not None:
            statement = statement.where(dicom_series.c.series.in_(series))
        if modality is not None:
            statement = statement.where(dicom_series.c.modality == modality)
        with self._database.reading() as connection:
            return list(connection.execute(statement).scalars())
