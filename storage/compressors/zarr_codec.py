"""Chunks by any compressor, for any Zarr v3 reader: the array-to-bytes codec `tomotrain.compressed`.

A chunk is the compressor's frame, digest and all, without the planes that it is padded with
(`storage.putt.trimming`). Write arrays with

    zarr.create_array(..., serializer=FramedCodec("zfp", {"tolerance": 4.0}), compressors=Crc32cCodec())

The compressors' libraries are needed to read, too: `pip install 'tomotrain[peers]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

import numpy as np
from zarr.core.common import JSON

from storage.compressors import BOUNDED, COMPRESSORS
from storage.compressors.base import Compressor
from storage.compressors.frame import Array, DamagedBytes, Dtype, opened
from storage.putt.digits import Shape
from storage.putt.zarr_codec import ChunkCodec

VERSION = 1
CHUNK_COMPRESSORS: dict[str, Compressor] = {**COMPRESSORS, BOUNDED.name: BOUNDED}
PROBE = np.zeros((1, 1, 1), np.int16)
"""Every compressor says of such values what its setting is called."""


@dataclass(frozen=True)
class FramedCodec(ChunkCodec):
    """Frames of `compressor` for its `setting`, a number by its name; none of one without loss.

    Raises ValueError for a compressor that is not here, for a setting that is not its own or cannot be, and
    for another version of the format. Coding raises UnsuitableValues, and both ways MissingPeer where the
    compressor's library is not installed.
    """

    name: ClassVar[str] = "tomotrain.compressed"
    newest: ClassVar[int] = VERSION

    compressor: str
    setting: Mapping[str, float] = field(default_factory=dict, hash=False)
    version: int = VERSION

    def __post_init__(self) -> None:
        self.readable(self.version)
        if self.compressor not in CHUNK_COMPRESSORS:
            raise ValueError(
                f"{self.name}: there is no compressor {self.compressor!r}; known are "
                f"{', '.join(CHUNK_COMPRESSORS)}"
            )
        own = CHUNK_COMPRESSORS[self.compressor].setting(PROBE)
        wanted = set() if own is None else {own.name}
        if set(self.setting) != wanted:
            raise ValueError(
                f"{self.name}: {self.compressor} is set by {', '.join(wanted) or 'nothing'}, got "
                f"{', '.join(self.setting) or 'nothing'}"
            )
        for name, number in self.setting.items():
            if not (isinstance(number, int | float) and isfinite(number) and number >= 0):
                raise ValueError(f"{self.name}: {name} = {number!r} must be a number of at least 0")

    def configuration(self) -> dict[str, JSON]:
        """See `ChunkCodec`."""
        return {"compressor": self.compressor, "setting": dict(self.setting)}

    def packed(self, values: Array) -> bytes:
        """See `ChunkCodec`."""
        return CHUNK_COMPRESSORS[self.compressor].compress(values, **self.setting)

    def unpacked(self, data: bytes, shape: Shape, dtype: Dtype) -> Array:
        """See `ChunkCodec`. What the frame says of itself is compared first."""
        frame = opened(data)
        found = frame.compressor, frame.shape, frame.dtype
        if found != (self.compressor, shape, dtype.newbyteorder("<")):
            raise DamagedBytes(
                f"the chunk holds {frame.dtype}{frame.shape} by {frame.compressor}, not {dtype}{shape} by "
                f"{self.compressor}"
            )
        return CHUNK_COMPRESSORS[self.compressor].decompress(data).astype(dtype, copy=False)
