"""Uploads in parts: their sessions, the room that there is for them, and how they become volumes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from service.intake import Patience
from service.settings import ServiceSettings
from service.tracing import traceparent_of_span
from storage.arriving import Arrival
from storage.catalogue import Catalogue
from storage.errors import InvalidScan, ScanError, ScanTooLarge
from storage.jobs import Job
from storage.readers import identify
from storage.readers.base import Limits
from storage.records import Received, VolumeRecord
from storage.sent_objects import Objects, SentObject, digest_of
from storage.tidy import upload_path
from storage.upload_errors import MissingUpload
from storage.upload_sessions import UploadKind, UploadSession, UploadSessions
from storage.uploads import Upload
from storage.watermark import Watermark

Made = tuple[VolumeRecord, Job]
MARKER = "zarr.json"


class Uploads:
    """What the routes of uploads share."""

    def __init__(self, settings: ServiceSettings, catalogue: Catalogue) -> None:
        self.root, self.most_bytes = settings.data_root, settings.max_upload_bytes
        self.idle_s = settings.upload_idle_s
        self.sessions = UploadSessions(catalogue.database, settings.upload_keep_s)
        self.waiting: dict[str, Patience] = {}
        """Bodies of uploads that this process waits for."""
        self.watermark = Watermark(self.root, settings.disk_kept_share, settings.disk_kept_bytes)

    def require_room(self, project_id: str, wanted: int) -> None:
        """Refuse bytes before the first of them. Raises ScanTooLarge, StorageLow or QuotaExceeded."""
        if wanted > self.most_bytes:
            raise ScanTooLarge("upload", wanted, self.most_bytes)
        self.watermark.require(wanted, self.sessions.promised_bytes())
        self.sessions.require_room(project_id, wanted)

    def open(
        self,
        kind: UploadKind,
        *,
        project_id: str,
        name: str,
        length: int | None,
        facts: Mapping[str, Any] | None = None,
        manifest: Objects | None = None,
    ) -> UploadSession:
        """A new session. Raises as `require_room` does, and StorageFull."""
        self.require_room(project_id, length or 0)
        session = self.sessions.open(kind, project_id=project_id, name=name, length=length, facts=facts)
        try:
            self.arrival(session).make(manifest)
        except BaseException:
            self.give_up(session)
            raise
        return session

    def session(self, upload_id: str, project_id: str, kind: UploadKind | None = None) -> UploadSession:
        """A session of the project. Raises MissingUpload, also for one of another kind."""
        session = self.sessions.session(upload_id, project_id=project_id)
        if kind not in (None, session.kind):
            raise MissingUpload(upload_id)
        return session

    def arrival(self, session: UploadSession) -> Arrival:
        """The files of a session."""
        return Arrival(self.root, session.id)

    def give_up(self, session: UploadSession, error: ScanError | None = None) -> None:
        """Abort a session, for an error perhaps, and remove what has arrived."""
        told = None if error is None else {"code": error.code, "detail": str(error)}
        self.sessions.abort(session.id, told)
        self.arrival(session).remove()

    def part(self, session: UploadSession) -> Upload:
        """An object on its way. Raises StorageFull."""
        return Upload(self.arrival(session).parts, uuid.uuid4().hex, self.most_bytes, self.watermark.require)

    def keep_object(self, session: UploadSession, key: str, received: Received) -> bool:
        """Enter an object that has arrived; False where it was there before. See UploadSessions."""
        arrival = self.arrival(session)

        def place() -> None:
            arrival.take_back(arrival.objects, upload_path(self.root, session.future_volume))
            arrival.place(received.path, key)

        try:
            return self.sessions.keep_object(
                session.id, key, SentObject(received.size, received.sha256), place
            )
        finally:
            received.path.unlink(missing_ok=True)

    def finish_objects(
        self, session: UploadSession, check: Callable[[Objects], None], submitted_by: str
    ) -> Made:
        """Make a volume of the objects that `check` finds complete. Raises as it does; UploadGone,
        UploadFinished; or ScanError where the objects are no scan: the session stays open then.
        """
        arrival, final = self.arrival(session), upload_path(self.root, session.future_volume)

        def bring(arrived: Objects) -> tuple[Received, str]:
            check(arrived)
            if MARKER not in arrived:
                raise InvalidScan(f"no object {MARKER} has arrived, which says what the others are; send it")
            arrival.take_back(arrival.objects, final)
            scan_format = identify(arrival.objects, Limits())
            arrival.move(arrival.objects, final)
            size = sum(sent.size for sent in arrived.values())
            return Received(session.future_volume, final, size, digest_of(arrived)), scan_format

        made = self.sessions.finish(session.id, bring, submitted_by, traceparent_of_span())
        arrival.remove()
        return made
