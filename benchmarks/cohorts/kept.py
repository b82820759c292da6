"""Prepared scans in memory, for trials that read the same scans again and again."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from benchmarks.cohorts.made import boxes_of
from models.learning.preparation import PreparedScan
from models.regressors.dense import whole
from models.types import Array, Int64, Size


class KeptScan:
    """A prepared scan, read once; the same voxels (but for rounding, within the same range), and the same
    background beyond its border.

    `given` (k,) is what was measured of it by others, for those who read that instead of voxels.
    """

    def __init__(self, scan: PreparedScan, given: Float64[Array, " k"] | None = None) -> None:
        self.shape, self.channels = scan.shape, scan.channels
        self.background, self.value_range = np.float32(scan.background), scan.value_range
        self.given = np.empty(0) if given is None else given
        self._above = whole(scan) - self.background

    def cubes(self, origins: Int64, size: Size) -> Float32[Array, "n c Z Y X"]:
        """Boxes with the lowest corners `origins` (n, 3)."""
        sides = (size,) * 3 if isinstance(size, int) else size
        boxes = np.stack([boxes_of(channel, origins, sides) for channel in self._above], axis=1)
        boxes += self.background
        return boxes.clip(*self.value_range, out=boxes)
