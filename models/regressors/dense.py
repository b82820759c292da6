"""Whole scans, for methods that look at every voxel: read slab by slab."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from models.errors import SourceFailed
from models.types import Array, CubeSource

SLAB = 32
"""Voxels along z that are read at once: as the store's chunks have."""


def slabs(scan: CubeSource) -> Iterator[tuple[int, Float32[Array, "c z y x"]]]:
    """(first z, values) from bottom to top. Raises SourceFailed, naming the slab."""
    Z, Y, X = scan.shape
    for z in range(0, Z, SLAB):
        sides = min(SLAB, Z - z), Y, X
        try:
            (box,) = scan.cubes(np.array([[z, 0, 0]]), sides)
        except Exception as error:
            raise SourceFailed(f"reading slices {z} to {z + sides[0] - 1}: {error}") from error
        if not np.isfinite(box).all():
            raise SourceFailed(f"reading slices {z} to {z + sides[0] - 1}: values that are not finite")
        yield z, box.astype(np.float32, copy=False)


def whole(scan: CubeSource) -> Float32[Array, "c z y x"]:
    """All of a scan."""
    values = np.empty((scan.channels, *scan.shape), np.float32)
    for z, slab in slabs(scan):
        values[:, z : z + slab.shape[1]] = slab
    return values
