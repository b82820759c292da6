"""Compressors that keep every bit, of any dtype: by bytes, without knowing of volumes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numcodecs import Blosc, Zstd

from storage.compressors.base import Framed, Setting
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, together

PORTION = 1 << 30
"""Bytes that a codec is given at a time: theirs are counted in 32 bits."""


class Plain(Framed):
    """Portions of bytes, each packed by itself."""

    lossless = True

    @abstractmethod
    def portion(self, data: bytes, itemsize: int) -> bytes:
        """A portion, packed."""

    @abstractmethod
    def unpacked_portion(self, data: bytes) -> bytes:
        """What `portion` was given. Raises RuntimeError."""

    def setting(self, values: Array) -> Setting | None:
        """None: it has no quality."""
        return None

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return together(
            [
                self.portion(raw[start : start + PORTION].tobytes(), values.dtype.itemsize)
                for start in range(0, len(raw), PORTION)
            ]
        )

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        raw = b"".join(map(self.unpacked_portion, apart(payload)))
        return np.frombuffer(bytearray(raw), dtype).reshape(shape)


class BloscZstd(Plain):
    """Blosc: bits of equal weight together, then Zstandard."""

    name: ClassVar[str] = "blosc"

    def portion(self, data: bytes, itemsize: int) -> bytes:
        """See `Plain`."""
        codec = Blosc("zstd", clevel=9, shuffle=Blosc.BITSHUFFLE, typesize=itemsize)
        return bytes(codec.encode(data))

    def unpacked_portion(self, data: bytes) -> bytes:
        """See `Plain`."""
        return bytes(Blosc().decode(data))


class Zstandard(Plain):
    """Zstandard (RFC 8878), level 9."""

    name: ClassVar[str] = "zstd"

    def portion(self, data: bytes, itemsize: int) -> bytes:
        """See `Plain`."""
        return bytes(Zstd(9).encode(data))

    def unpacked_portion(self, data: bytes) -> bytes:
        """See `Plain`."""
        return bytes(Zstd().decode(data))
