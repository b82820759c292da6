"""A part of a volume that stands for all of it: blocks from everywhere, side by side as one volume.

What a compressor makes of it at some setting is near what it makes of the whole, for a fraction of the work.
Blocks start where a compressor's own do, and images of several of them are not much smaller than the whole's.
The least and the largest value are put into it: settings, bits and peaks go by them.
"""

from __future__ import annotations

from math import isqrt, prod

import numpy as np

from storage.compressors.frame import Array

VOXELS = 1 << 20
SIDE = 64
WORTH = 2
"""A part is taken if the whole is more than so many times as large."""


def mosaic(values: Array, voxels: int = VOXELS) -> Array | None:
    """About so many voxels of (z, y, x) or (t, z, y, x), of all frames; None where that is most of them."""
    lead, spatial = values.shape[:-3], values.shape[-3:]
    sides = [min(SIDE, length) for length in spatial]
    counts = [length // side for length, side in zip(spatial, sides, strict=True)]
    size = prod(lead) * prod(sides)
    across = max(1, isqrt(min(voxels // size, prod(counts))))
    if values.size < WORTH * across**2 * size:
        return None
    taken = np.random.default_rng(0).permutation(prod(counts))[: across**2]
    corners = np.stack(np.unravel_index(np.sort(taken), counts), -1) * sides
    height, width = sides[1:]
    told = np.empty((prod(lead), sides[0], across * height, across * width), values.dtype)
    frames = values.reshape(-1, *spatial)
    for (row, column), (z, y, x) in zip(np.ndindex(across, across), corners.tolist(), strict=True):
        told[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = frames[
            :, z : z + sides[0], y : y + height, x : x + width
        ]
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if known.size:
        told.reshape(-1)[:2] = known.min(), known.max()
    return told.reshape(*lead, *told.shape[1:])
