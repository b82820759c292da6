"""A scan as a coarse grid: the mean of its intensities in each of a few blocks per axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.regressors.base import Look, Saliency
from models.regressors.dense import slabs
from models.types import Array, CubeSource, Int64


@dataclass(frozen=True)
class BlockMeans:
    """Means over `grid`^3 blocks of nearly equal size; axes with fewer voxels have one block for each."""

    grid: int = 12

    def __call__(self, scan: CubeSource) -> Float64[Array, " p"]:
        """(channels * blocks,), channels side by side; the scan is read slab by slab."""
        z_edges, y_edges, x_edges = (self.edges(size) for size in scan.shape)
        rows = np.empty((scan.channels, scan.shape[0], len(y_edges) - 1, len(x_edges) - 1))
        for start, slab in slabs(scan):
            planes = np.add.reduceat(slab, x_edges[:-1], axis=3, dtype=np.float64)
            rows[:, start : start + slab.shape[1]] = np.add.reduceat(planes, y_edges[:-1], axis=2)
        sums = np.add.reduceat(rows, z_edges[:-1], axis=1)
        z, y, x = (np.diff(edges) for edges in (z_edges, y_edges, x_edges))
        return np.asarray((sums / (z[:, None, None] * y[:, None] * x)).ravel())

    def edges(self, size: int) -> Int64:
        """Borders of the blocks of an axis."""
        blocks = min(self.grid, size)
        return np.arange(blocks + 1) * size // blocks

    def look(
        self, scan: CubeSource, gradient: Callable[[Float64[Array, " p"]], Float64[Array, " p"]]
    ) -> Look:
        """Every voxel is looked at; what a block's mean moves an answer by stands at the block's middle."""
        features = self(scan)
        moved = (gradient(features) * features).reshape(scan.channels, -1).sum(axis=0)
        middles = [(edges[:-1] + edges[1:]) // 2 for edges in map(self.edges, scan.shape)]
        voxels = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 3)
        z, y, x = (size / min(self.grid, size) for size in scan.shape)
        return Look(voxels=int(np.prod(scan.shape)), saliency=Saliency(voxels, moved, (z, y, x)))

    def tensors(self) -> dict[str, Array]:
        """There are none."""
        return {}

    def manifest(self) -> dict[str, Any]:
        """The setting."""
        return asdict(self)
