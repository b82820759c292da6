"""How many bytes a project may have: those of its volumes' sources, and of uploads on their way."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from storage.errors import QuotaExceeded
from storage.records import VolumeState
from storage.tables import projects, uploads, volumes

OPEN = "open"
CURE = "delete volumes or uploads, or ask for more"
_WITHOUT_BYTES = (VolumeState.DELETED, VolumeState.REJECTED)


def refuse_bytes(connection: Connection, project_id: str, wanted: int) -> None:
    """Raise QuotaExceeded where a project would have more than it may.

    Lets one transaction of a project at a time see its quota.
    """
    allowed = connection.execute(
        select(projects.c.max_bytes).where(projects.c.id == project_id).with_for_update()
    ).scalar_one_or_none()
    if allowed is None:
        return
    present = _of_volumes(connection, project_id) + _of_uploads(connection, project_id)
    if present + wanted > allowed:
        raise QuotaExceeded("bytes", present, wanted, allowed, CURE)


def promised_bytes(connection: Connection) -> int:
    """What open uploads have announced and not yet sent, of all projects."""
    left = func.sum(uploads.c.length - uploads.c.received)
    return int(connection.execute(select(func.coalesce(left, 0)).where(uploads.c.state == OPEN)).scalar_one())


def _of_volumes(connection: Connection, project_id: str) -> int:
    theirs = (volumes.c.project_id == project_id, volumes.c.state.not_in(_WITHOUT_BYTES))
    return int(
        connection.execute(
            select(func.coalesce(func.sum(volumes.c.source_bytes), 0)).where(*theirs)
        ).scalar_one()
    )


def _of_uploads(connection: Connection, project_id: str) -> int:
    size = func.sum(func.coalesce(uploads.c.length, uploads.c.received))
    theirs = (uploads.c.project_id == project_id, uploads.c.state == OPEN)
    return int(connection.execute(select(func.coalesce(size, 0)).where(*theirs)).scalar_one())
