"""One request's bytes on their way into an upload by the tus protocol: it is the upload's only writer."""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

from service.errors import ApiError
from service.tracing import traceparent_of_span
from service.uploading import Made, Uploads
from storage.arriving import GrowingFile
from storage.errors import DigestMismatch, ScanError, ScanTooLarge
from storage.readers import identify
from storage.readers.base import Limits
from storage.records import Received
from storage.sent_objects import Objects
from storage.tidy import upload_path
from storage.upload_errors import WrongOffset
from storage.upload_sessions import UploadKind, UploadSession

KEEP_EVERY_BYTES = 64 << 20
KEEP_EVERY_S = 30.0
"""So often what has arrived is made durable while a request goes on."""


class Checksum(NamedTuple):
    """What `Upload-Checksum` announces: an algorithm of hashlib and the digest."""

    algorithm: str
    digest: bytes


class TusWriter:
    """Bytes count when they are on the disk, for good: `keep` syncs them and then tells the catalogue.

    The last byte counts only together with the volume that the file becomes, so that a sender who lost the
    answer always finds something to send, and with it the answer. Bytes under a checksum count when it is
    right, and all at once.
    """

    def __init__(
        self, uploads: Uploads, session: UploadSession, file: GrowingFile, checksum: Checksum | None
    ) -> None:
        assert session.length is not None
        self._uploads, self._session, self._file = uploads, session, file
        self._length, self.at = session.length, session.received
        self._kept, self._kept_at = self.at, time.monotonic()
        self._checksum = checksum
        self._hash = None if checksum is None else hashlib.new(checksum.algorithm)
        self._whole = hashlib.sha256() if self.at == 0 else None
        self.expires_at = session.expires_at

    @classmethod
    def begin(
        cls, uploads: Uploads, upload_id: str, project_id: str, offset: int, checksum: Checksum | None = None
    ) -> TusWriter:
        """Go on with an upload at the byte where it goes on.

        Raises MissingUpload, UploadGone, UploadFinished, UploadBusy or WrongOffset.
        """
        session = uploads.session(upload_id, project_id, UploadKind.TUS)
        session.require_open()
        final = upload_path(uploads.root, session.future_volume)
        file = GrowingFile(uploads.arrival(session), upload_id, final)
        try:
            session = uploads.session(upload_id, project_id)
            session.require_open()
            if offset != session.received:
                raise WrongOffset(upload_id, offset, session.received)
            file.go_on_at(offset)
        except BaseException:
            file.close()
            raise
        return cls(uploads, session, file, checksum)

    def write(self, piece: bytes) -> None:
        """Append. Raises ScanTooLarge beyond the announced length, StorageLow or StorageFull."""
        if self.at + len(piece) > self._length:
            raise ScanTooLarge("upload", self.at + len(piece), self._length)
        self._uploads.watermark.require(len(piece))
        self._file.write(piece)
        self.at += len(piece)
        if self._whole is not None:
            self._whole.update(piece)
        if self._hash is not None:
            self._hash.update(piece)
        elif self.at - self._kept >= KEEP_EVERY_BYTES or time.monotonic() - self._kept_at >= KEEP_EVERY_S:
            self._keep()

    def cut(self) -> None:
        """The body broke off: keep what came, unless nothing says whether it is right."""
        if self._checksum is None:
            self._keep()

    def finish(self, submitted_by: str) -> Made | None:
        """The body has ended: keep it, and make a volume of the file where it is whole.

        Raises ApiError `checksum-mismatch`; ScanError where the file is no scan, which ends the session.
        """
        self._check_sum()
        self._keep()
        return self._complete(submitted_by) if self.at == self._length else None

    def close(self) -> None:
        """Let the next writer in."""
        self._file.close()

    def _check_sum(self) -> None:
        if self._checksum is None or self._hash is None or self._hash.digest() == self._checksum.digest:
            return
        raise ApiError(
            "checksum-mismatch",
            f"the body's {self._checksum.algorithm} is {self._hash.hexdigest()}, not "
            f"{self._checksum.digest.hex()}; send it again",
            retryable=True,
        )

    def _sha256(self) -> str:
        """Of the whole file (hex); read again where it came in several requests."""
        return self._file.sha256() if self._whole is None else self._whole.hexdigest()

    def _keep(self) -> None:
        if self.at > self._kept:
            self._file.sync()
            counted = min(self.at, self._length - 1)
            self.expires_at = self._uploads.sessions.advance(self._session.id, counted).expires_at
            self._kept, self._kept_at = self.at, time.monotonic()

    def _complete(self, submitted_by: str) -> Made:
        session, sha256 = self._session, self._sha256()
        try:
            announced = session.facts.get("sha256")
            if announced not in (None, sha256):
                raise DigestMismatch(str(announced), sha256)
            scan_format = identify(self._file.path, Limits())
        except ScanError as error:
            self._uploads.give_up(session, error)
            raise
        uploads = self._uploads
        arrival, final = uploads.arrival(session), upload_path(uploads.root, session.future_volume)

        def bring(_: Objects) -> tuple[Received, str]:
            arrival.move(arrival.data, final)
            return Received(session.future_volume, final, self._length, sha256), scan_format

        made = uploads.sessions.finish(session.id, bring, submitted_by, traceparent_of_span())
        arrival.remove()
        return made
