"""DICOM instances that were sent one by one, or some at a time, collected until their series is whole.

Nobody says when a series ends (PS3.18 10.5 knows instances alone), so one to which nothing was added for a
quiet time is taken for whole, and becomes a volume. A collection is an upload session, its objects are the
instances by their replaced UIDs; `expires_at` is when it becomes a volume if nothing more comes. It is
durable: what was taken outlasts a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from storage.arriving import Arrival
from storage.clock import now
from storage.database import Database
from storage.dicom_series import SeriesIndex, enter
from storage.dicom_uids import INSTANCES, SentInstances
from storage.disk import sync
from storage.errors import StorageError
from storage.ids import new_id
from storage.jobs import Job, Sender
from storage.quotas import refuse_bytes
from storage.readers import identify
from storage.records import Received, VolumeState
from storage.sent_objects import Objects, digest_of
from storage.tables import upload_objects, uploads
from storage.tidy import upload_path
from storage.upload_errors import UploadFinished, UploadGone
from storage.upload_sessions import UploadKind, UploadSession, UploadSessions, UploadState

log = logging.getLogger("tomotrain.storage")
QUIET_S = 10.0
GONE = {"code": "storage-error", "detail": "the instances are gone from the disk; send them again"}


@dataclass(frozen=True)
class SeriesOfStudy:
    """A series, by replaced UIDs."""

    study: str
    series: str


class DicomCollections:
    """The collections of all projects. Safe from many threads and processes."""

    def __init__(self, database: Database, data_root: Path, quiet_s: float = QUIET_S) -> None:
        self._database, self._root, self._quiet_s = database, data_root, quiet_s
        self._sessions = UploadSessions(database, quiet_s)
        self._index = SeriesIndex(database)

    def add(self, sender: Sender, which: SeriesOfStudy, arrived: Mapping[str, Received]) -> set[str]:
        """Add instances by their UIDs; those that are there already, with the same bytes or in a volume, stay
        as they are. Which UIDs are refused: they are there with other bytes.

        What was added is moved from where it lies. Raises QuotaExceeded or StorageFull, and then nothing was.
        """
        held = self._held(sender.project_id, which)
        wanted = {uid: received for uid, received in arrived.items() if uid not in held}
        if not wanted:
            return set()
        with self._database.writing() as connection:
            refuse_bytes(connection, sender.project_id, sum(each.size for each in wanted.values()))
            upload_id = self._open(connection, sender, which)
            present = _present(connection, upload_id)
            new = {uid: received for uid, received in wanted.items() if uid not in present}
            self._place(connection, upload_id, new)
        again = wanted.keys() - new.keys()
        return {uid for uid in again if wanted[uid].sha256 != present[uid]}

    def close_quiet(self) -> list[Job]:
        """Make volumes of the collections that are whole; the jobs that will read them."""
        whole = select(uploads.c.id).where(
            uploads.c.state == UploadState.OPEN,
            uploads.c.expires_at <= now(),
            uploads.c.kind == UploadKind.DICOM,
        )
        with self._database.reading() as connection:
            ids = list(connection.execute(whole.order_by(uploads.c.id)).scalars())
        return [job for job in map(self._close, ids) if job is not None]

    def _open(self, connection: Connection, sender: Sender, which: SeriesOfStudy) -> str:
        """The open collection of a series, or a new one. The project's row is locked."""
        facts = {"study": which.study, "series": which.series}
        theirs = select(uploads.c.id, uploads.c.facts).where(
            uploads.c.state == UploadState.OPEN,
            uploads.c.kind == UploadKind.DICOM,
            uploads.c.project_id == sender.project_id,
        )
        for row in connection.execute(theirs.with_for_update()):
            if facts.items() <= row.facts.items():
                return str(row.id)
        upload_id = new_id("upl")
        Arrival(self._root, upload_id).make()
        connection.execute(
            insert(uploads).values(
                id=upload_id,
                project_id=sender.project_id,
                kind=UploadKind.DICOM,
                name=f"series {which.series[-6:]}",
                state=UploadState.OPEN,
                created_at=now(),
                expires_at=now() + self._quiet_s,
                received=0,
                facts={**facts, "by": sender.name, "trace": sender.trace},
            )
        )
        return upload_id

    def _place(self, connection: Connection, upload_id: str, new: Mapping[str, Received]) -> None:
        arrival = Arrival(self._root, upload_id)
        arrival.take_back(arrival.objects, upload_path(self._root, _volume_of(upload_id)))
        for uid, received in new.items():
            received.path.rename(arrival.objects / uid)
        if new:
            sync(arrival.objects)
            rows = [
                {"upload_id": upload_id, "key": uid, "size": each.size, "sha256": each.sha256}
                for uid, each in new.items()
            ]
            connection.execute(insert(upload_objects), rows)
        connection.execute(
            update(uploads)
            .where(uploads.c.id == upload_id)
            .values(
                expires_at=now() + self._quiet_s,
                received=uploads.c.received + sum(each.size for each in new.values()),
                objects=uploads.c.objects + len(new),
                revision=uploads.c.revision + 1,
            )
        )

    def _close(self, upload_id: str) -> Job | None:
        """Make a volume of a collection; None where another process has, or where it is no scan."""
        session = self._sessions.session(upload_id)
        facts = session.facts
        bring = partial(self._bring, session)
        try:
            volume, job = self._sessions.finish(upload_id, bring, facts["by"], facts["trace"])
        except (UploadFinished, UploadGone):
            return None
        except FileNotFoundError:
            log.exception("the instances of the collection %s are gone", upload_id)
            self._sessions.abort(upload_id, GONE)
            return None
        except StorageError as error:
            log.warning("the collection %s becomes no volume: %s", upload_id, error)
            if not error.retryable:
                self._sessions.abort(upload_id, {"code": error.code, "detail": str(error)})
            return None
        with self._database.writing() as connection:
            enter(connection, volume.id, session.project_id, facts["study"], facts["series"])
        Arrival(self._root, upload_id).remove()
        return job

    def _bring(self, session: UploadSession, arrived: Objects) -> tuple[Received, str]:
        arrival = Arrival(self._root, session.id)
        final = upload_path(self._root, session.future_volume)
        arrival.take_back(arrival.objects, final)
        scan_format = identify(arrival.objects)
        arrival.move(arrival.objects, final)
        size = sum(sent.size for sent in arrived.values())
        return Received(session.future_volume, final, size, digest_of(arrived)), scan_format

    def _held(self, project_id: str, which: SeriesOfStudy) -> set[str]:
        """The instances of a series that volumes hold, or will."""
        held: set[str] = set()
        for volume_id, state, store in self._index.holding(project_id, which.study, which.series):
            if state is VolumeState.READY and store is not None:
                held.update(_instances(self._root / store))
            else:
                held.update(_names(upload_path(self._root, volume_id)))
        return held


def _volume_of(upload_id: str) -> str:
    return f"vol_{upload_id.removeprefix('upl_')}"


def _present(connection: Connection, upload_id: str) -> dict[str, str]:
    """sha-256 (hex) of what a collection has, by UID."""
    here = select(upload_objects.c.key, upload_objects.c.sha256).where(
        upload_objects.c.upload_id == upload_id
    )
    return {row.key: row.sha256 for row in connection.execute(here)}


def _instances(store: Path) -> Iterable[str]:
    """The UIDs of the instances that a stored volume was made of."""
    try:
        planes = SentInstances.parse((store / INSTANCES).read_bytes()).planes
    except FileNotFoundError:
        return ()
    return (uid for frame in planes for uid in frame if uid)


def _names(folder: Path) -> Iterable[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
