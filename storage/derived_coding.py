"""How the arrays of a derived volume are coded: the codec of their tiles, and their tiling.

A tile is an inner chunk of a shard. `PLAIN` codes as ingest does, in chunks of 32^3 at level 0; the others
have tiles of 64^3, or as long as an axis that is shorter. Shards have 64 x 256 x 256 voxels at most, whatever
the coding: no more is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import Codec

from storage.compressors.zarr_codec import FramedCodec
from storage.layout import PLAIN_CODECS, VIEWING, Level, Shape3, Tiling
from storage.putt.block import block_bytes, block_values
from storage.putt.zarr_codec import ChunkCodec, PuttCodec

Array = NDArray[Any]
Dtype = np.dtype[Any]

FILL = 0
"""What tiles are padded with beyond the array."""
_ZSTD = numcodecs.Zstd(level=1, checksum=True)


@dataclass(frozen=True)
class Coding:
    """Inner codecs and tiling of all levels. Without a `codec` values are stored plain.

    `lossless` says whether values always come back as they were: then nobody decodes them to know.
    """

    codec: ChunkCodec | None = None
    lossless: bool = True

    @property
    def codecs(self) -> Sequence[Codec]:
        """Of an inner chunk, without its crc32c."""
        return PLAIN_CODECS if self.codec is None else (self.codec,)

    def tiling(self, level: Level) -> Tiling:
        """Of one level."""
        if self.codec is None:
            chunk = level.tiling.chunk
        else:
            z, y, x = (min(side, length) for side, length in zip(VIEWING.chunk, level.shape, strict=True))
            chunk = z, y, x
        return Tiling(chunk, _multiple(chunk)).within(level.shape)

    def encoded(self, values: Array, chunk: Shape3) -> bytes:
        """A tile whose voxels within the array are `values` (z, y, x); the rest of it is `FILL`. Without its
        crc32c.
        """
        tile = values
        if values.shape != chunk:
            tile = np.full(chunk, FILL, values.dtype)
            tile[tuple(map(slice, values.shape))] = values
        if self.codec is None:
            return bytes(_ZSTD.encode(np.ascontiguousarray(tile, tile.dtype.newbyteorder("<"))))
        return self.codec.chunk_bytes(tile, FILL)

    def decoded(self, data: bytes, shape: tuple[int, ...], chunk: Shape3, dtype: Dtype) -> Array:
        """The voxels of a tile within the array, `shape` of them, as every reader will have them."""
        if self.codec is None:
            tile = np.frombuffer(_ZSTD.decode(data), dtype.newbyteorder("<")).reshape(chunk)
        else:
            tile = self.codec.chunk_values(data, chunk, dtype, FILL)
        return tile[tuple(map(slice, shape))]

    def to_json(self) -> list[Any]:
        """The codecs as an array's metadata name them."""
        return [codec.to_dict() for codec in self.codecs]


@dataclass(frozen=True)
class Within(PuttCodec):
    """Trains whose steps are so fine, tile by tile, that no voxel's error is above `bound`.

    For values of any dtype; readers take it for what it writes, `tomotrain.putt`: each train has its step.
    """

    bound: float = 0.0

    def packed(self, values: Array) -> bytes:
        """See `ChunkCodec`. Ever finer steps end with values that are kept as they are."""
        step = self.step
        while True:
            data = block_bytes(values, step)
            z, y, x = values.shape
            told = block_values(data, (z, y, x), values.dtype)
            if float(np.abs(np.subtract(told, values, dtype=np.float64)).max()) <= self.bound:
                return data
            step /= 2


PLAIN = Coding()


def putt(step: float) -> Coding:
    """Trains of integers for a step, in units of the values. Raises ValueError where it is not above 0."""
    return Coding(PuttCodec(step), lossless=False)


def within(bound: float) -> Coding:
    """Trains with a bound on every voxel's error. Raises ValueError for one that is not above 0."""
    return Coding(Within(step=bound, bound=bound), lossless=False)


def framed(compressor: str, setting: Mapping[str, float], *, lossless: bool = False) -> Coding:
    """Any registered compressor's frames. Raises ValueError for an unknown one and a setting not its own."""
    return Coding(FramedCodec(compressor, dict(setting)), lossless=lossless)


def _multiple(chunk: Shape3) -> Shape3:
    """The shard: as many whole chunks as go into the largest one, one at least."""
    z, y, x = (max(1, most // side) * side for side, most in zip(chunk, VIEWING.shard, strict=True))
    return z, y, x
