"""What the store asks of the disk: to say when it is full, and to keep what was written, whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, or a file larger than the system lets it be."""


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they outlast a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_whole(path: Path, content: bytes, *, part: str = "part") -> None:
    """Write a file, in place of one that is there: a reader, or a power cut, finds the old or the new one.

    `part` ends the name that the file has until it is whole. Raises OSError, and leaves nothing then.
    """
    with written_whole(path, part=part) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path, *, part: str = "part") -> Iterator[BinaryIO]:
    """A file to be written piece by piece, which gets its name, as by `write_whole`, when the block ends;
    after any error in it, it is gone.
    """
    unfinished = path.with_name(f"{path.name}.{part}")
    try:
        make_folder(path.parent)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        sync(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
