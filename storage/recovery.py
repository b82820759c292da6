"""A service is made anew from a backup, in an empty place: every byte compared on its way.

What the backup's moment left half done is mended: jobs that ran are queued again, those that were to stop
are cancelled, uploads that had not arrived whole are to be sent anew, and volumes whose bytes the backup does
not have are quarantined. The audit log goes on with a record of it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, select, update

from storage.arriving import FOLDER as ARRIVING
from storage.arriving import Arrival
from storage.audit import AuditLog
from storage.backup_manifest import CATALOGUE, SECRETS, Backup, BackupError, KeptFile, LeftOut
from storage.database import Database
from storage.disk import make_folder, sync
from storage.jobs import JobState
from storage.migrations import HEAD
from storage.snapshot import NotEmpty, load
from storage.tables import jobs, sessions, upload_objects, uploads, volumes
from storage.transitions import QUEUED_NOW, as_cancelled, change_jobs, close_volume, release_dependents
from storage.upload_sessions import UploadState

PIECE = 1 << 20
ACTOR = "operator"


@dataclass(frozen=True)
class Mended:
    """How many rows were changed, and volumes that are quarantined for want of their bytes."""

    queued: int
    cancelled: int
    uploads: int
    quarantined: tuple[str, ...]


def restore(source: Path, data_root: Path, url: str | None = None) -> tuple[Backup, Mended]:
    """Make a data root of a backup, with the catalogue in it or, by `url`, in an empty database.

    Raises BackupError where the backup is damaged or of a later release, or a place is not empty; then
    nothing is left in the data root.
    """
    backup = Backup.read(source)
    if backup.schema > HEAD:
        raise BackupError(
            f"the backup is of a later release ({backup.release}): install that one, or a newer"
        )
    if data_root.exists() and any(data_root.iterdir()):
        raise BackupError(f"{data_root} is not empty; name a new folder")
    make_folder(data_root)
    try:
        for path, kept in sorted(backup.files.items()):
            _bring(source / path, data_root / path, kept)
        for upload_id in _arrived(backup):
            Arrival(data_root, upload_id).make()
        mended = _enter(data_root / CATALOGUE, url, backup)
    except BaseException:
        for left in data_root.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        raise
    return backup, mended


def _bring(source: Path, target: Path, kept: KeptFile) -> None:
    """Copy a file, and compare what is written with what was kept. Raises BackupError."""
    make_folder(target.parent)
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(PIECE):
                writer.write(piece)
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError as error:
        raise BackupError(f"the backup lacks {source}; take another one") from error
    if KeptFile(size, digest.hexdigest()) != kept:
        raise BackupError(f"{source} is not what was kept: the backup is damaged; take another one")
    if target.parent.name == SECRETS:
        target.parent.chmod(0o700)
        target.chmod(0o600)
    sync(target)


def _enter(catalogue: Path, url: str | None, backup: Backup) -> Mended:
    """Bring the catalogue to this release's schema and to its place, and mend it there."""
    here = f"sqlite:///{catalogue.absolute()}"
    with closing(Database.open(here)):
        pass
    if url is not None:
        try:
            load(catalogue, url)
        except NotEmpty as error:
            raise BackupError(str(error)) from error
        for part in catalogue.parent.glob(f"{CATALOGUE}*"):
            part.unlink()
    with closing(Database.open(url or here)) as database:
        with database.writing() as connection:
            mended = _mend(connection, backup)
        AuditLog(database).append(
            actor=ACTOR,
            action="restore-backup",
            subject=f"the backup of {backup.created_at}",
            outcome=200,
            request_id="-",
            project_id=None,
        )
    return mended


def _mend(connection: Connection, backup: Backup) -> Mended:
    queued = change_jobs(connection, jobs.c.state == JobState.RUNNING, **QUEUED_NOW)
    cancelled = change_jobs(connection, jobs.c.state == JobState.CANCELLING, **as_cancelled())
    for job in cancelled:
        release_dependents(connection, job)
    gone = connection.execute(
        update(uploads)
        .where(uploads.c.state == UploadState.OPEN, uploads.c.id.not_in(_arrived(backup)))
        .values(state=UploadState.EXPIRED)
    )
    still = select(uploads.c.id).where(uploads.c.state == UploadState.OPEN)
    connection.execute(delete(upload_objects).where(upload_objects.c.upload_id.not_in(still)))
    connection.execute(delete(sessions))
    quarantined = tuple(_quarantine(connection, backup.left_out))
    return Mended(len(queued), len(cancelled), gone.rowcount, quarantined)


def _arrived(backup: Backup) -> set[str]:
    """The upload sessions of which the backup has what had arrived."""
    return {path.split("/")[1] for path in backup.files if path.startswith(f"{ARRIVING}/")}


def _quarantine(connection: Connection, left_out: Iterable[LeftOut]) -> Iterable[str]:
    """Close the volumes whose stores the backup does not have."""
    stores = {each.path: each.reason for each in left_out}
    found = connection.execute(select(volumes.c.id, volumes.c.store).where(volumes.c.store.in_(list(stores))))
    for row in found.all():
        detail = f"the backup does not have its bytes: {stores[row.store]}"
        close_volume(connection, row.id, {"code": "corrupt-volume", "detail": detail, "retryable": False})
        yield row.id
