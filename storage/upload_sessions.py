"""Upload sessions: what has arrived of an upload that comes in parts, by the word of the catalogue.

A session is `open` until it is `complete` (it has become a volume), `aborted` (by its sender, or because what
arrived is no scan) or `expired` (nothing came for so long). Whatever arrives renews it. What a row says has
arrived is durable: bytes are synced before they are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from storage.catalogue.volumes import insert_volume
from storage.clock import now
from storage.database import Database
from storage.errors import InvalidScan, ScanTooLarge
from storage.ids import new_id
from storage.jobs import Job
from storage.quotas import OPEN, promised_bytes, refuse_bytes
from storage.records import Received, VolumeRecord
from storage.sent_objects import MOST_OBJECTS, Objects, SentObject
from storage.tables import upload_objects, uploads
from storage.upload_errors import MissingUpload, ObjectDiffers, UploadFinished, UploadGone

KEEP_S = 86_400.0
"""An upload to which nothing is added for this long is given up."""
REMEMBERED_S = 7 * 86_400.0
"""So long after its end a session still says what became of it."""


class UploadState(StrEnum):
    """Where a session stands."""

    OPEN = OPEN
    COMPLETE = "complete"
    EXPIRED = "expired"
    ABORTED = "aborted"


class UploadKind(StrEnum):
    """What arrives: one file by the tus protocol, a Zarr object by object, or a DICOM series instance by
    instance (storage/dicom_collections.py), which ends when nothing came for a while, and never expires.
    """

    TUS = "tus"
    ZARR = "zarr"
    DICOM = "dicom"


@dataclass(frozen=True)
class UploadSession:
    """One session. `received` and `length` are bytes, `objects` counts those of a Zarr; `length` is None
    where it was not announced. `facts` hold what the sender said of it.
    """

    id: str
    project_id: str
    kind: UploadKind
    name: str
    state: UploadState
    created_at: float
    expires_at: float
    length: int | None
    received: int
    objects: int
    volume_id: str | None
    facts: dict[str, Any]
    revision: int

    @property
    def future_volume(self) -> str:
        """The id of the volume that it becomes: known from the beginning, so that moving its bytes can be
        tried again.
        """
        return f"vol_{self.id.removeprefix('upl_')}"

    def require_open(self) -> None:
        """Raise UploadFinished or UploadGone unless bytes may be added."""
        if self.state is UploadState.COMPLETE:
            raise UploadFinished(self.id, self.volume_id)
        if self.state is not UploadState.OPEN:
            raise UploadGone(self.id, self.state, self.facts.get("error"))


class UploadSessions:
    """The sessions. Any method raises CatalogueUnavailable or StorageFull as the database does."""

    def __init__(self, database: Database, keep_s: float = KEEP_S) -> None:
        self._database, self._keep_s = database, keep_s

    def open(
        self,
        kind: UploadKind,
        *,
        project_id: str,
        name: str,
        length: int | None,
        facts: Mapping[str, Any] | None = None,
    ) -> UploadSession:
        """A new session, its announced bytes reserved. Raises QuotaExceeded."""
        with self._database.writing() as connection:
            refuse_bytes(connection, project_id, length or 0)
            row = connection.execute(
                insert(uploads)
                .values(
                    id=new_id("upl"),
                    project_id=project_id,
                    kind=kind,
                    name=name,
                    state=UploadState.OPEN,
                    created_at=now(),
                    expires_at=now() + self._keep_s,
                    length=length,
                    received=0,
                    facts=dict(facts or {}),
                )
                .returning(uploads)
            ).one()
        return _session(row)

    def session(self, upload_id: str, *, project_id: str | None = None) -> UploadSession:
        """One session. Raises MissingUpload, also for one of another project than the one named."""
        with self._database.reading() as connection:
            return _found(connection, upload_id, project_id)

    def require_room(self, project_id: str, wanted: int) -> None:
        """Raise QuotaExceeded where a project may not have so many bytes more."""
        with self._database.writing() as connection:
            refuse_bytes(connection, project_id, wanted)

    def promised_bytes(self) -> int:
        """What open sessions have announced and not yet sent, of all projects."""
        with self._database.reading() as connection:
            return promised_bytes(connection)

    def advance(self, upload_id: str, received: int) -> UploadSession:
        """So many bytes of a file are durable. Raises UploadGone, UploadFinished or MissingUpload."""
        with self._database.writing() as connection:
            _locked(connection, upload_id)
            return self._change(connection, upload_id, received=received)

    def keep_object(self, upload_id: str, key: str, sent: SentObject, place: Callable[[], None]) -> bool:
        """Enter an object that is whole; `place` gives it its key. False where it was there already.

        Raises ObjectDiffers, ScanTooLarge beyond the announced length, QuotaExceeded, UploadGone,
        UploadFinished, MissingUpload, or what `place` raises.
        """
        with self._database.writing() as connection:
            session = _locked(connection, upload_id)
            here = (upload_objects.c.upload_id == upload_id, upload_objects.c.key == key)
            present = connection.execute(select(upload_objects).where(*here)).first()
            if present is not None:
                if (present.size, present.sha256) != (sent.size, sent.sha256):
                    raise ObjectDiffers(key, present.sha256, sent.sha256)
                return False
            _refuse_object(connection, session, sent)
            place()
            connection.execute(
                insert(upload_objects).values(
                    upload_id=upload_id, key=key, size=sent.size, sha256=sent.sha256
                )
            )
            self._change(
                connection,
                upload_id,
                received=uploads.c.received + sent.size,
                objects=uploads.c.objects + 1,
            )
        return True

    def objects(self, upload_id: str) -> dict[str, SentObject]:
        """The objects that have arrived, by key."""
        with self._database.reading() as connection:
            return _objects(connection, upload_id)

    def finish(
        self,
        upload_id: str,
        bring: Callable[[Objects], tuple[Received, str]],
        submitted_by: str | None = None,
        trace: str | None = None,
    ) -> tuple[VolumeRecord, Job]:
        """One transaction: the session `complete`, and its volume entered with the job that will read it.

        `bring` sees the objects that have arrived, and nothing more arrives after that: it brings the bytes
        to where the job looks for them, and says what they are and in which format. Raises UploadGone,
        UploadFinished, MissingUpload, or what `bring` raises, which leaves the session as it is.
        """
        with self._database.writing() as connection:
            session = _locked(connection, upload_id)
            received, scan_format = bring(_objects(connection, upload_id))
            made = insert_volume(
                connection,
                received,
                name=session.name,
                scan_format=scan_format,
                project_id=session.project_id,
                submitted_by=submitted_by,
                trace=trace,
            )
            connection.execute(delete(upload_objects).where(upload_objects.c.upload_id == upload_id))
            self._change(
                connection,
                upload_id,
                state=UploadState.COMPLETE,
                received=received.size,
                volume_id=received.volume_id,
            )
        return made

    def abort(self, upload_id: str, error: Mapping[str, Any] | None = None) -> None:
        """Give a session up. Raises UploadGone, UploadFinished or MissingUpload."""
        with self._database.writing() as connection:
            session = _locked(connection, upload_id)
            facts = session.facts if error is None else {**session.facts, "error": dict(error)}
            connection.execute(delete(upload_objects).where(upload_objects.c.upload_id == upload_id))
            self._change(connection, upload_id, state=UploadState.ABORTED, facts=facts)

    def expire(self) -> None:
        """Give up the sessions to which nothing was added for too long; forget those that ended long ago."""
        late = select(uploads.c.id).where(
            uploads.c.state == UploadState.OPEN,
            uploads.c.expires_at <= now(),
            uploads.c.kind != UploadKind.DICOM,
        )
        forgotten = (uploads.c.state != UploadState.OPEN, uploads.c.expires_at <= now() - REMEMBERED_S)
        with self._database.writing() as connection:
            ids = list(connection.execute(late.with_for_update(skip_locked=True)).scalars())
            connection.execute(delete(upload_objects).where(upload_objects.c.upload_id.in_(ids)))
            connection.execute(update(uploads).where(uploads.c.id.in_(ids)).values(state=UploadState.EXPIRED))
            connection.execute(delete(uploads).where(*forgotten))

    def open_ids(self) -> set[str]:
        """The sessions whose bytes are still awaited."""
        with self._database.reading() as connection:
            statement = select(uploads.c.id).where(uploads.c.state == UploadState.OPEN)
            return set(connection.execute(statement).scalars())

    def _change(self, connection: Connection, upload_id: str, **values: Any) -> UploadSession:
        row = connection.execute(
            update(uploads)
            .where(uploads.c.id == upload_id)
            .values(expires_at=now() + self._keep_s, revision=uploads.c.revision + 1, **values)
            .returning(uploads)
        ).one()
        return _session(row)


def _locked(connection: Connection, upload_id: str) -> UploadSession:
    """An open session that no other transaction changes meanwhile."""
    connection.execute(select(uploads.c.id).where(uploads.c.id == upload_id).with_for_update())
    session = _found(connection, upload_id, None)
    session.require_open()
    return session


def _found(connection: Connection, upload_id: str, project_id: str | None) -> UploadSession:
    late = and_(uploads.c.expires_at <= now(), uploads.c.kind != UploadKind.DICOM).label("late")
    row = connection.execute(select(uploads, late).where(uploads.c.id == upload_id)).first()
    if row is None or project_id not in (None, row.project_id):
        raise MissingUpload(upload_id)
    return _session(row)


def _session(row: Row[Any]) -> UploadSession:
    """A row's session; one whose time is over counts as expired before it was swept."""
    facts = dict(row._mapping)
    late = facts.pop("late", False)
    state = UploadState(facts["state"])
    if late and state is UploadState.OPEN:
        state = UploadState.EXPIRED
    return UploadSession(**{**facts, "kind": UploadKind(facts["kind"]), "state": state})


def _objects(connection: Connection, upload_id: str) -> dict[str, SentObject]:
    rows = connection.execute(select(upload_objects).where(upload_objects.c.upload_id == upload_id))
    return {row.key: SentObject(row.size, row.sha256) for row in rows}


def _refuse_object(connection: Connection, session: UploadSession, sent: SentObject) -> None:
    if session.objects >= MOST_OBJECTS:
        raise InvalidScan(f"the upload has {session.objects:,} objects already; write larger shards")
    if session.length is None:
        refuse_bytes(connection, session.project_id, sent.size)
    elif session.received + sent.size > session.length:
        raise ScanTooLarge("objects of the upload", session.received + sent.size, session.length)
