"""A grid of blocks, each a quantised train of integers (`storage.putt`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from storage.compressors.base import Framed, Setting, in_voxel_units
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, grid, together
from storage.putt.block import block_bytes, block_values
from storage.putt.varints import read_varint, varint

COARSEST = 512.0
"""Of ranges of the values: then a block of 64^3 is its mean."""


@dataclass(frozen=True)
class Putt(Framed):
    """Blocks of `side` voxels along each axis for a step; those at the far faces are cut.

    NaN and infinite values are kept: blocks that hold some are kept without loss.
    """

    name: ClassVar[str] = "putt"

    side: int = 64

    def setting(self, values: Array) -> Setting | None:
        """`step`: the error's deviation is about a quarter of a step, or less."""
        return in_voxel_units("step", values, COARSEST)

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        blocks = [block_bytes(values[where], number) for where in grid(values.shape, self.side)]
        return varint(self.side) + together(blocks)

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        side, at = read_varint(payload, 0)
        values = np.empty(shape, dtype)
        for where, block in zip(grid(shape, side), apart(payload[at:]), strict=True):
            values[where] = block_values(block, values[where].shape, dtype)
        return values
