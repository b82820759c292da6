"""A grid of blocks, each coefficients of a wavelet transform, coded by a range coder (`storage.wavelet`)."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np

from storage.compressors.base import Framed, Setting, in_voxel_units
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, grid, together
from storage.wavelet.block import wavelet_bytes, wavelet_values

SIDE = 64
COARSEST = 512.0
"""Of ranges of the values: then a block of 64^3 is its mean."""


class Wavelet(Framed):
    """Blocks of SIDE voxels along each axis, each by itself; those at the far faces are cut.

    NaN and infinite values are kept: blocks that hold some are kept without loss.
    """

    name: ClassVar[str] = "wavelet"

    def setting(self, values: Array) -> Setting | None:
        """`step`: the error's deviation is about a third of a step, or less."""
        return in_voxel_units("step", values, COARSEST)

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        return together([wavelet_bytes(values[where], number) for where in grid(values.shape, SIDE)])

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`. Raises ValueError for other blocks than those of such a shape."""
        blocks = apart(payload)
        wanted = prod(shape[:-3]) * prod(-(-side // SIDE) for side in shape[-3:])
        if len(blocks) != wanted:
            raise ValueError(f"{len(blocks)} blocks for a shape of {shape}, which has {wanted}")
        values = np.empty(shape, dtype)
        for where, block in zip(grid(shape, SIDE), blocks, strict=True):
            values[where] = wavelet_values(block, values[where].shape, dtype)
        return values
