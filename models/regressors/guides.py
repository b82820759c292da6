"""Guides for `models.cpic.guided_voxels`: where a scan is rough, and so where there is something to see."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32, Float64

from models.cpic.field import EncodedVoxels
from models.cpic.guided_voxels import Guide, drawn_by
from models.cpic.moments import Pooling
from models.cpic.random_voxels import RandomVoxels
from models.cpic.strategies import Chosen
from models.regressors.dense import SLAB, slabs
from models.types import Array, CubeSource

EDGE = 4
"""Of a block, in voxels; divides a slab."""
assert SLAB % EDGE == 0


def roughness(scan: CubeSource) -> Guide:
    """The standard deviation in each block of 4^3 voxels, summed over channels. Reads the whole scan, slab by
    slab.
    """
    layers = [_deviations(slab) for _, slab in slabs(scan)]
    return Guide(scan.shape, EDGE, np.concatenate(layers))


def _deviations(slab: Float32[Array, "c z y x"]) -> Float64[Array, "bz by bx"]:
    """Of blocks; those at the far border are smaller."""
    count = _block_sums(np.ones(slab.shape[1:]))
    total = np.zeros(count.shape)
    for channel in slab.astype(np.float64):
        mean = _block_sums(channel) / count
        total += np.sqrt(np.maximum(_block_sums(np.square(channel)) / count - np.square(mean), 0))
    return total


def _block_sums(values: Float64[Array, "z y x"]) -> Float64[Array, "bz by bx"]:
    for axis in range(3):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], EDGE), axis=axis)
    return values


_KEPT: WeakKeyDictionary[CubeSource, Guide] = WeakKeyDictionary()


def guide_of(scan: CubeSource) -> Guide:
    """The roughness of a scan, kept as long as the scan is: a training asks for it in every step."""
    if scan not in _KEPT:
        _KEPT[scan] = roughness(scan)
    return _KEPT[scan]


@dataclass(frozen=True, eq=False)
class Guided:
    """A strategy: voxels drawn by the roughness of each scan, a share of them everywhere; see `drawn_by`."""

    count: int
    pooling: Pooling
    uniform: float
    self_normalised: bool = False

    def choose(self, volume: EncodedVoxels, seed: int, previous: Chosen | None = None) -> RandomVoxels:
        """See `Strategy`."""
        return drawn_by(
            guide_of(volume.scan.boxes.source),
            self.count,
            seed,
            self.pooling,
            uniform=self.uniform,
            self_normalised=self.self_normalised,
        )
