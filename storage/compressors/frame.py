"""Compressed bytes that are complete in themselves: what they hold, and a digest by which damage is found.

8 bytes   magic, b"TTvolume"
1         version of the frame
16        the first half of the SHA-256 of all that follows
1 + n     the compressor's name
1 + n     the dtype, as numpy writes it, little-endian
1 + 8 d   the number of axes, and the sides
...       what the compressor wrote
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Dtype = np.dtype[Any]

MAGIC = b"TTvolume"
VERSION = 1
DIGEST = 16
HEAD = len(MAGIC) + 1 + DIGEST


class DamagedBytes(ValueError):
    """Bytes that are no compressed volume, or no longer the one that was written; nothing was decoded."""


class NewerFormat(ValueError):
    """Bytes that a newer Tomotrain wrote."""


@dataclass(frozen=True)
class Frame:
    """What compressed bytes hold."""

    compressor: str
    dtype: Dtype
    shape: tuple[int, ...]
    payload: bytes

    def bytes(self) -> bytes:
        """The frame as bytes."""
        name, dtype = self.compressor.encode(), self.dtype.newbyteorder("<").str.encode()
        sides = struct.pack(f"<B{len(self.shape)}Q", len(self.shape), *self.shape)
        held = b"".join([bytes([len(name)]), name, bytes([len(dtype)]), dtype, sides, self.payload])
        return MAGIC + bytes([VERSION]) + _digest(held) + held


def opened(data: bytes) -> Frame:
    """The frame that `Frame.bytes` wrote. Raises DamagedBytes and NewerFormat."""
    if len(data) < HEAD or not data.startswith(MAGIC):
        raise DamagedBytes(
            f"{len(data):,} bytes that begin with {data[:4].hex() or 'none'} are no compressed volume"
        )
    if (version := data[len(MAGIC)]) != VERSION:
        raise NewerFormat(
            f"the bytes are of version {version} of the format, this Tomotrain reads {VERSION}: use a newer "
            "one"
        )
    held = data[HEAD:]
    if (found := _digest(held)) != (written := data[len(MAGIC) + 1 : HEAD]):
        raise DamagedBytes(
            f"the {len(data):,} bytes have the digest {found.hex()}, not {written.hex()}: they were cut "
            "short or altered; fetch them again"
        )
    name, at = _text(held, 0)
    dtype, at = _text(held, at)
    axes = held[at]
    shape = struct.unpack_from(f"<{axes}Q", held, at + 1)
    return Frame(name, np.dtype(dtype), shape, held[at + 1 + 8 * axes :])


def _text(held: bytes, at: int) -> tuple[str, int]:
    """A word with its length before it, and where the next one begins."""
    stop = at + 1 + held[at]
    return held[at + 1 : stop].decode(), stop


def _digest(held: bytes) -> bytes:
    return hashlib.sha256(held).digest()[:DIGEST]
