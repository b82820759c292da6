"""A stream of bytes becomes a file: limited, hashed, and gone again when it does not arrive whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from storage.disk import DISK_FULL, sync
from storage.errors import DigestMismatch, EmptyUpload, ScanTooLarge, StorageFull
from storage.records import Received


class Upload:
    """One upload on its way: `folder/<volume id>.part` until `finish` gives it its name.

    `require` is asked before so many bytes more are written, and may refuse them. Raises StorageFull when the
    disk refuses a write; after any error, call `abort`.
    """

    def __init__(
        self,
        folder: Path,
        volume_id: str,
        limit_bytes: int,
        require: Callable[[int], None] = lambda wanted: None,
    ) -> None:
        self._volume_id = volume_id
        self._limit, self._require = limit_bytes, require
        self._final = folder / volume_id
        self._part = folder / f"{volume_id}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        except OSError as error:
            if error.errno in DISK_FULL:
                raise StorageFull(f"the upload could not be written: {error.strerror}") from error
            raise
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Append some bytes. Raises ScanTooLarge once there are more than the limit."""
        self._size += len(chunk)
        if self._size > self._limit:
            raise ScanTooLarge("upload", self._size, self._limit)
        self._require(len(chunk))
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise StorageFull(f"the upload could not be written: {error.strerror}") from error

    def finish(self, announced_sha256: str | None = None) -> Received:
        """Make the file durable and give it its name.

        Raises EmptyUpload, or DigestMismatch when the sender announced another sha-256 (hex).
        """
        digest = self._hash.hexdigest()
        if self._size == 0:
            raise EmptyUpload
        if announced_sha256 is not None and announced_sha256.lower() != digest:
            raise DigestMismatch(announced_sha256, digest)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._final)
            sync(self._final.parent)
        except OSError as error:
            raise StorageFull(f"the upload could not be written: {error.strerror}") from error
        return Received(self._volume_id, self._final, self._size, digest)

    def abort(self) -> None:
        """Remove whatever has arrived; harmless after `finish` too, which then leaves the file."""
        with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffer
            self._file.close()
        self._part.unlink(missing_ok=True)
