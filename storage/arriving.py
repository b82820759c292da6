"""Where uploads lie that arrive in parts, until they are whole.

<data root>/arriving/<upload id>/data          one file that grows (tus)
                                 lock          held by who writes to it
                                 objects/...   a Zarr, object by object
                                 parts/...     objects of which the last byte is not there yet
                                 manifest.json what is to arrive, where that was said
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from storage.disk import DISK_FULL, make_folder, sync, write_whole
from storage.errors import StorageFull
from storage.sent_objects import Objects, SentObject
from storage.upload_errors import BadKey, UploadBusy, UploadGone

FOLDER = "arriving"


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Turn what a full disk says into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageFull(f"the upload could not be written: {error.strerror}") from error
        raise


def any_in(folder: Path) -> bool:
    """Whether there is anything in a folder."""
    return folder.is_dir() and next(folder.iterdir(), None) is not None


class Arrival:
    """The files of one upload session."""

    def __init__(self, data_root: Path, upload_id: str) -> None:
        self.folder = data_root / FOLDER / upload_id
        self.data, self.objects, self.parts = (self.folder / name for name in ("data", "objects", "parts"))
        self._manifest = self.folder / "manifest.json"

    def make(self, manifest: Objects | None = None) -> None:
        """Begin. Raises StorageFull."""
        with full_disk_told():
            make_folder(self.parts)
            make_folder(self.objects)
            if manifest is not None:
                document = {key: asdict(sent) for key, sent in manifest.items()}
                write_whole(self._manifest, json.dumps(document).encode())

    def manifest(self) -> dict[str, SentObject] | None:
        """What is to arrive; None where nobody has said."""
        if not self._manifest.exists():
            return None
        return {key: SentObject(**sent) for key, sent in json.loads(self._manifest.read_bytes()).items()}

    def place(self, part: Path, key: str) -> None:
        """Give an object that is whole its key, which was checked. Raises BadKey where one is in its way."""
        target = self.objects / key
        try:
            make_folder(target.parent)
            part.rename(target)
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise BadKey(key, "another object's key is a part of it, or it is of another's") from error
        sync(target.parent)

    def move(self, arrived: Path, final: Path) -> None:
        """Bring what is whole to where it will be read: the row that says so is written next."""
        make_folder(final.parent)
        arrived.rename(final)
        sync(final.parent)

    def take_back(self, arrived: Path, final: Path) -> None:
        """Undo a `move` that no row followed, as its process died or the database went away."""
        if final.exists() and not (arrived.is_file() or any_in(arrived)):
            with contextlib.suppress(FileNotFoundError):
                arrived.rmdir()
            final.rename(arrived)

    def remove(self) -> None:
        """Remove everything; harmless where nothing is left."""
        shutil.rmtree(self.folder, ignore_errors=True)


class GrowingFile:
    """The file of one upload, open for its only writer from a byte on; what lies behind that is cut off.

    Raises UploadBusy where another process or thread has it open, StorageFull when the disk refuses a write.
    """

    def __init__(self, arrival: Arrival, upload_id: str, final: Path) -> None:
        try:
            with full_disk_told():
                self._lock = os.open(arrival.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            raise UploadGone(upload_id, "removed") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UploadBusy(upload_id) from None
        self._arrival, self._upload_id = arrival, upload_id
        self.path, self._final = arrival.data, final
        self._file: int | None = None

    def go_on_at(self, offset: int) -> None:
        """Be ready to write there.

        Raises UploadGone where the bytes before are no longer there.
        """
        with full_disk_told():
            self._arrival.take_back(self.path, self._final)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(self._file).st_size < offset:
                raise UploadGone(self._upload_id, "damaged")
            os.ftruncate(self._file, offset)
            os.lseek(self._file, offset, os.SEEK_SET)

    def write(self, piece: bytes) -> None:
        """Append."""
        assert self._file is not None
        left = memoryview(piece)
        with full_disk_told():
            while left:
                left = left[os.write(self._file, left) :]

    def sync(self) -> None:
        """Make what was written outlast a power cut."""
        assert self._file is not None
        with full_disk_told():
            os.fsync(self._file)

    def sha256(self) -> str:
        """Of the whole file (hex)."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        """Let the next writer in."""
        if self._file is not None:
            os.close(self._file)
        os.close(self._lock)
