"""Voxels drawn where there is something to see: importance sampling of a field's pooled moments.

A guide gives each block of a volume a weight. A voxel v of a block with n voxels is drawn with the chance

    p(v) = (1 - u) weight / (n sum of weights) + u / V,

so that u of the draws go everywhere, and no estimate weighs a voxel more than 1 / u times as uniform draws
would. Each draw stands for the share 1 / (m V p(v)) of the volume: moments stay unbiased (Hansen & Hurwitz
1943). Draws are systematic, at equal steps along the summed chances, which spreads them over blocks as strata
do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from models.cpic.moments import Pooling
from models.cpic.random_voxels import RandomVoxels
from models.errors import InvalidConfig, InvalidShape
from models.types import Array, Int64

Shape3 = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Guide:
    """How much there is to see in each block of `edge`^3 voxels: `weights` (bz, by, bx), at least 0.

    Raises InvalidShape for other numbers of blocks, or weights that are negative or not finite.
    """

    shape: Shape3
    edge: int
    weights: Float64[Array, "bz by bx"]

    def __post_init__(self) -> None:
        blocks = tuple(-(-size // self.edge) for size in self.shape)
        if self.weights.shape != blocks:
            raise InvalidShape(f"a guide of {self.weights.shape} blocks, not {blocks}")
        if not np.isfinite(self.weights).all() or self.weights.min() < 0:
            raise InvalidShape("the weights of a guide must be finite and at least 0")

    def chances(self, uniform: float) -> Float64[Array, " blocks"]:
        """Of each block, that a draw falls into it; together 1."""
        sizes = self.sizes()
        spread = sizes / sizes.sum()
        total = self.weights.sum()
        if total == 0:
            return np.asarray(spread)
        return np.asarray((1 - uniform) * self.weights.ravel() / total + uniform * spread)

    def sizes(self) -> Float64[Array, " blocks"]:
        """Voxels in each block: fewer at the far border."""
        z, y, x = (
            np.minimum(self.edge, size - np.arange(0, size, self.edge)).astype(np.float64)
            for size in self.shape
        )
        return np.asarray((z[:, None, None] * y[:, None] * x).ravel())


def drawn_by(
    guide: Guide, count: int, seed: int, pooling: Pooling, *, uniform: float, self_normalised: bool = False
) -> RandomVoxels:
    """At most `count` distinct voxels, drawn by a guide; one that is drawn twice has both shares.

    `uniform` is u. Raises InvalidConfig for a count below 1 or u outside of (0, 1].
    """
    if count < 1:
        raise InvalidConfig("count", count, "at least 1")
    if not 0 < uniform <= 1:
        raise InvalidConfig("uniform", uniform, "above 0, at most 1")
    generator = np.random.default_rng(seed)
    chances, sizes = guide.chances(uniform), guide.sizes()
    ends = np.cumsum(chances)
    steps = (np.arange(count) + generator.random()) / count * ends[-1]
    blocks = np.minimum(np.searchsorted(ends, steps, side="right"), len(ends) - 1)
    voxels = _within(guide, blocks, generator.random((3, count)))
    shares = sizes[blocks] / (count * sizes.sum() * chances[blocks])
    distinct, at = np.unique(voxels, return_inverse=True)
    summed = np.bincount(at, weights=shares, minlength=len(distinct))
    shares = np.asarray(summed, np.float64)
    return RandomVoxels(distinct, shares, pooling.at(distinct, guide.shape), self_normalised)


def _within(guide: Guide, blocks: Int64, places: NDArray[np.float64]) -> Int64:
    """One voxel of each block, uniformly: linear indices."""
    corners = [axis * guide.edge for axis in np.unravel_index(blocks, guide.weights.shape)]
    zyx = [
        corner + np.floor(place * np.minimum(guide.edge, size - corner)).astype(np.int64)
        for corner, place, size in zip(corners, places, guide.shape, strict=True)
    ]
    return np.asarray(np.ravel_multi_index(tuple(zyx), guide.shape), np.int64)
