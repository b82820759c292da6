"""The files of an upload, wherever they lie: one file, a folder, or a zip archive that is never extracted.

A zip is judged by its central directory alone: names that leave the archive, links, encryption, entries that
share bytes, and declared sizes. Entries are stored or deflated: while one is read, no more than its declared
size is ever unpacked (`zipfile` stops there and then compares the CRC), so a lie is found and costs nothing.
With bzip2 and LZMA that would not hold, as `zipfile` unpacks whatever a piece of them holds: 1 kB of bzip2
makes gigabytes.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Self, cast

from storage.errors import InvalidScan, ScanTooLarge, UnsafeArchive, UnsupportedScan
from storage.naming import check_inside, masked, told
from storage.readers.base import Limits

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
ENTRY_MAGIC = b"PK\x01\x02"
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LOCAL_HEADER_BYTES = 30
DIRECTORY_BYTES_PER_ENTRY = 512
SPOOL_BYTES = 32 << 20
"""An entry up to this size is unpacked into memory, a larger one into an unnamed temporary file."""
READ_BYTES = 1 << 20
THE_UPLOAD = "the upload"


@dataclass(frozen=True)
class Member:
    """One file of an upload: its name inside it (with `/`) and its size in bytes, unpacked."""

    name: str
    size: int
    place: int = 1
    """The first file of the upload has 1: in the order of the archive, or of a folder's names."""

    @property
    def told(self) -> str:
        """How to speak of it: names of files may identify a patient."""
        return told(self.name, self.place) if self.name != THE_UPLOAD else THE_UPLOAD


class Tree(ABC):
    """The files of an upload. Close it when done; a context manager."""

    members: tuple[Member, ...]

    @abstractmethod
    def open(self, member: Member) -> BinaryIO:
        """The member's bytes, seekable. Raises InvalidScan when they are damaged."""

    @abstractmethod
    def stream(self, member: Member) -> BinaryIO:
        """The member's bytes for one pass from the start: seeking back may be slow."""

    def read(self, member: Member, at_most: int) -> bytes:
        """The first bytes of a member."""
        with damage_named(member), self.stream(member) as file:
            return file.read(at_most)

    def close(self) -> None:
        """Let go of the files."""
        return

    def __enter__(self) -> Self:
        """The tree itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class SingleFile(Tree):
    """One file. Its name is not told: an upload's is our own, and would mean nothing to its sender."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.members = (Member(THE_UPLOAD, path.stat().st_size),)

    def open(self, member: Member) -> BinaryIO:
        """See `Tree.open`."""
        return self._path.open("rb")

    def stream(self, member: Member) -> BinaryIO:
        """See `Tree.stream`."""
        return self.open(member)


class Folder(Tree):
    """A folder."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._root = path
        files = _regular_files(path, limits)
        self.members = tuple(
            Member(file.relative_to(self._root).as_posix(), file.stat().st_size, place)
            for place, file in enumerate(files, 1)
        )

    def open(self, member: Member) -> BinaryIO:
        """See `Tree.open`."""
        return (self._root / member.name).open("rb")

    def stream(self, member: Member) -> BinaryIO:
        """See `Tree.stream`."""
        return self.open(member)


class Archive(Tree):
    """A zip archive, checked by `check_archive`. Folder entries are left out."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._zip = open_zip(path, limits)
        self._entries = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self.members = tuple(
            Member(info.filename, info.file_size, place)
            for place, info in enumerate(self._entries.values(), 1)
        )

    def open(self, member: Member) -> BinaryIO:
        """See `Tree.open`: the entry is unpacked into memory or an unnamed temporary file."""
        with ExitStack() as on_error:
            spool = on_error.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES))
            with damage_named(member), self.stream(member) as file:
                while piece := file.read(READ_BYTES):
                    spool.write(piece)
            spool.seek(0)
            on_error.pop_all()
        return cast(BinaryIO, spool)

    def stream(self, member: Member) -> BinaryIO:
        """See `Tree.stream`."""
        with damage_named(member):
            return io.BufferedReader(cast(io.RawIOBase, self._zip.open(self._entries[member.name])), 1 << 16)

    def close(self) -> None:
        """Let go of the archive."""
        self._zip.close()


class _DirectoryGuard(io.BufferedReader):
    """An archive's file that refuses to hand out a central directory too big to be held in memory.

    `zipfile` reads the directory at one go, of whatever size the end record claims, and makes an object of
    every entry. Entries are counted by their signature, so no count that a record declares is trusted.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(io.FileIO(path))
        self._limits = limits
        self.lifted = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Like any file's. Raises ScanTooLarge or InvalidScan while the guard is not lifted."""
        if self.lifted:
            return super().read(size)
        allowed = self._limits.members * DIRECTORY_BYTES_PER_ENTRY
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > allowed:
            raise ScanTooLarge("central directory of the archive", wanted, allowed)
        data = super().read(size)
        entries = data.count(ENTRY_MAGIC)
        if entries > self._limits.members:
            raise InvalidScan(f"the archive has {entries} entries; at most {self._limits.members} are read")
        return data


class _Zip(zipfile.ZipFile):
    """An archive whose directory is read through a guard. Closing it closes its file."""

    def __init__(self, path: Path, limits: Limits) -> None:
        with ExitStack() as on_error:
            self._guard = on_error.enter_context(_DirectoryGuard(path, limits))
            super().__init__(self._guard)
            self._guard.lifted = True
            on_error.pop_all()

    def close(self) -> None:
        """Let go of the archive and its file."""
        super().close()
        self._guard.close()


def open_tree(path: Path, limits: Limits) -> Tree:
    """The files of an upload. Raises UnsafeArchive, ScanTooLarge or InvalidScan before any is read."""
    if path.is_dir():
        return Folder(path, limits)
    return Archive(path, limits) if is_zip(path) else SingleFile(path)


def is_zip(path: Path) -> bool:
    """Whether the file starts as a zip archive does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in ZIP_MAGIC


def open_zip(path: Path, limits: Limits) -> zipfile.ZipFile:
    """The archive, when its central directory is sound and safe.

    Raises UnsafeArchive, ScanTooLarge or InvalidScan.
    """
    with ExitStack() as on_error:
        try:
            archive = on_error.enter_context(_Zip(path, limits))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise InvalidScan(f"truncated or damaged archive: {error}; send it again") from error
        check_archive(archive.infolist(), path.stat().st_size, limits)
        on_error.pop_all()
    return archive


def check_archive(entries: list[zipfile.ZipInfo], archive_bytes: int, limits: Limits) -> None:
    """Judge an archive by its central directory. See the module's docstring."""
    if len(entries) > limits.members:
        raise InvalidScan(f"the archive has {len(entries)} entries; at most {limits.members} are read")
    places = accumulate(int(not entry.is_dir()) for entry in entries)
    for place, entry in zip(places, entries, strict=True):
        _check_entry(entry, told(entry.filename, place), limits)
    if len({entry.filename for entry in entries}) < len(entries):
        raise InvalidScan("two entries of the archive have the same name; pack it again")
    declared = sum(entry.file_size for entry in entries)
    if declared > limits.decoded_bytes:
        raise ScanTooLarge("declared size of the archive's entries", declared, limits.decoded_bytes)
    _check_overlap(entries, archive_bytes)
    allowed = max(limits.expansion * archive_bytes, limits.small_bytes)
    if declared > allowed:
        raise ScanTooLarge("entries of an archive as small as this one", declared, allowed)


@contextmanager
def damage_named(member: Member) -> Iterator[None]:
    """Turn what reading a damaged entry raises into InvalidScan that tells which. `zipfile` quotes names."""
    try:
        yield
    except zipfile.BadZipFile:
        raise InvalidScan(f"{member.told} is damaged: not what the archive says of it") from None
    except (zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidScan(f"{member.told} is damaged in the archive ({type(error).__name__})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidScan(f"{member.told} is damaged in the archive") from None


def _check_entry(entry: zipfile.ZipInfo, name: str, limits: Limits) -> None:
    check_inside(entry.orig_filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise UnsafeArchive(masked(entry.filename), "it is a symbolic link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchive(masked(entry.filename), "it is neither a file nor a folder")
    if entry.flag_bits & 0x41:
        raise InvalidScan("the archive is encrypted; send it without a password")
    if entry.compress_type not in PACKINGS:
        raise InvalidScan(f"archive entry {name} is neither stored nor deflated; pack it again")
    if entry.file_size > limits.member_bytes:
        raise ScanTooLarge(f"archive entry {name}", entry.file_size, limits.member_bytes)


def _check_overlap(entries: list[zipfile.ZipInfo], archive_bytes: int) -> None:
    """Refuse entries that share bytes of the archive, the trick of the non-recursive zip bombs."""
    packed = sum(entry.compress_size for entry in entries)
    if packed > archive_bytes:
        raise ScanTooLarge("entries of the archive overlap; packed they claim", packed, archive_bytes)
    end = 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            raise InvalidScan("an entry of the archive overlaps another; pack it again")
        end = entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size


def _regular_files(root: Path, limits: Limits) -> list[Path]:
    """Every file below a folder, sorted by name. Raises UnsafeArchive for a link."""
    files = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise UnsafeArchive(masked(path.relative_to(root).as_posix()), "it is a symbolic link")
        if path.is_file():
            files.append(path)
        elif not path.is_dir():
            raise UnsupportedScan(f"{masked(path.relative_to(root).as_posix())!r} is not a regular file")
        if len(files) > limits.members:
            raise InvalidScan(f"the folder has more than {limits.members} files; at most that many are read")
    return files
