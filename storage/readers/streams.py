"""Bytes of one file in order, unpacked on the way: exact reads, and a bounded look past the end."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from storage.errors import InvalidScan
from storage.readers.base import Voxels

GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_MAX_RATIO = 1032
"""No deflate stream unpacks to more than 1032 times its size (zlib technical details)."""
TAIL_BYTES = 1 << 20
"""How far past the declared voxels a stream is read: enough for the checksum of any honest file."""
SKIP_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
"""How much of a packed file is looked at to know what it holds."""


def open_packed(file: BinaryIO, packing: str) -> BinaryIO:
    """The unpacked bytes of `file` from its current position; packing is `raw`, `gzip` or `bzip2`."""
    if packing == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if packing == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(file, mode="rb"))
    return file


def unpacked_head(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, unpacked where it is a gzip stream; fewer where it is shorter.

    A gzip header may hold a name without end, and a stream any number of empty members, so no more than
    `HEAD_BYTES` are looked at. Raises InvalidScan for a gzip stream that is broken from the start or holds
    nothing.
    """
    with path.open("rb") as file:
        head = file.read(size)
        if not head.startswith(GZIP_MAGIC):
            return head
        file.seek(0)
        packed = io.BytesIO(file.read(HEAD_BYTES))
    with _damage_named():
        head = open_packed(packed, "gzip").read(size)
    if not head:
        raise InvalidScan("the file is empty after decompression")
    return head


def read_exactly(stream: BinaryIO, voxels: Voxels, done: int, total: int) -> None:
    """Fill a contiguous array from a stream. `done` of `total` voxel bytes were read before: for the message.

    Raises InvalidScan when the stream ends early or is damaged.
    """
    view = voxels.reshape(-1).view(np.uint8).data
    filled = 0
    with _damage_named():
        while filled < len(view):
            count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise InvalidScan(
                    f"file ends early: the header declares {total} voxel bytes, found {done + filled}; "
                    "send the whole file"
                )
            filled += count


def skip(stream: BinaryIO, count: int) -> None:
    """Read `count` bytes and forget them. Raises InvalidScan when the stream ends early or is damaged."""
    left = count
    with _damage_named():
        while left:
            piece = stream.read(min(left, SKIP_BYTES))
            if not piece:
                raise InvalidScan(f"bad header: voxels start at byte {count}, after the end of the file")
            left -= len(piece)


def check_tail(stream: BinaryIO) -> str | None:
    """Read a little past the voxels, which also verifies the checksum of a packed stream that ends there.

    Returns a warning where bytes follow. Raises InvalidScan when the checksum is wrong.
    """
    with _damage_named():
        extra = len(stream.read(TAIL_BYTES))
    if extra == TAIL_BYTES:
        return (
            f"more than {TAIL_BYTES} bytes follow the voxels; they were not read, nor any checksum after them"
        )
    return f"{extra} bytes follow the voxels; they were ignored" if extra else None


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what the decompressors raise into InvalidScan."""
    try:
        yield
    except EOFError as error:
        raise InvalidScan("file ends early (compressed stream incomplete); send the whole file") from error
    except (gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidScan(f"the compressed stream is corrupt: {error}") from error
