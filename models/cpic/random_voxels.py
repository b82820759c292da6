"""Voxels drawn at random: an estimator of a volume's pooled moments, and a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from models.cpic.moments import Pooling, sampled_moments
from models.errors import InvalidConfig
from models.types import Int64

Shape3 = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class RandomVoxels:
    """Voxels that were drawn at random, as an estimator of a field's pooled moments. Make one with `drawn`.

    `shares` (m,) are the parts of the volume that the voxels stand for: they sum to 1.
    """

    voxels: Int64
    shares: NDArray[np.float64]
    weights: NDArray[np.float64]
    self_normalised: bool

    @classmethod
    def drawn(
        cls,
        shape: Shape3,
        count: int,
        seed: int,
        pooling: Pooling,
        *,
        strata: int = 1,
        self_normalised: bool = False,
    ) -> RandomVoxels:
        """See `draw` for the voxels, and `sampled_moments` for the estimator."""
        voxels, shares = draw(shape, count, seed, strata=strata)
        return cls(voxels, shares, pooling.at(voxels, shape), self_normalised)

    def moments(self, values: Float[Tensor, "m f"]) -> Float64[Tensor, " n"]:
        """The estimates, (B^3 features,): features of one moment side by side."""
        weights, shares = (torch.from_numpy(array).to(values.device) for array in (self.weights, self.shares))
        return sampled_moments(values, weights, shares, self_normalised=self.self_normalised).flatten()


def draw(shape: Shape3, count: int, seed: int, *, strata: int = 1) -> tuple[Int64, NDArray[np.float64]]:
    """Voxels (m,) of a volume, ascending, and the parts of it that they stand for (m,); a stream of its own.

    Without replacement: a voxel seen twice says nothing new, and would be encoded once. Uniform in each of
    `strata`^3 blocks of nearly equal size (axes with fewer voxels have fewer), of which each has its share of
    the count; all voxels are taken where there are no more.
    Raises InvalidConfig for less than one stratum per axis, or one voxel per stratum.
    """
    if strata < 1:
        raise InvalidConfig("strata", strata, "at least 1")
    edges = [_edges(size, strata) for size in shape]
    blocks = list(product(*(pairwise(axis) for axis in edges)))
    if count < len(blocks):
        raise InvalidConfig("count", count, f"at least {len(blocks)}, one voxel per stratum")
    generator = np.random.default_rng(seed)
    parts = [
        _drawn_in(block, shape, count // len(blocks) + (at < count % len(blocks)), generator)
        for at, block in enumerate(blocks)
    ]
    voxels, shares = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(voxels)
    return voxels[order], shares[order]


def _edges(size: int, strata: int) -> list[int]:
    """Borders of nearly equal parts of an axis, none of them empty."""
    parts = min(strata, size)
    return [part * size // parts for part in range(parts + 1)]


def _drawn_in(
    block: tuple[tuple[int, int], ...], shape: Shape3, count: int, generator: np.random.Generator
) -> tuple[Int64, NDArray[np.float64]]:
    """At most `count` voxels of one block, and their shares of the volume."""
    sizes = tuple(end - start for start, end in block)
    inside = int(np.prod(sizes, dtype=np.int64))
    count = min(count, inside)
    drawn = generator.choice(inside, count, replace=False, shuffle=False)
    at = np.stack(np.unravel_index(drawn, sizes)) + np.array([start for start, _ in block])[:, None]
    voxels = np.asarray(np.ravel_multi_index(tuple(at), shape), np.int64)
    return voxels, np.full(count, inside / (np.prod(shape, dtype=np.float64) * count))
