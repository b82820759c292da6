"""The cohort *spread*: which share of the left half of the brain does a fine texture involve?

Each half of the brain, left and right, has its own share y ~ U(0, 1) of voxels, a smooth random region, that
carries a checkerboard with a period of two voxels and one random sign per volume. The rest of the brain
carries balanced noise of the same amplitude: each aligned block of 2 x 2 x 2 voxels has four +1 and four -1
in one of the 70 possible orders, drawn at random. The target is the share that was reached in the left half,
counted; the right half is the decoy.

What follows: a voxel's distribution does not depend on y, nor do intensities over any region; every block's
mean is what it was before, so volumes averaged in blocks to 1/2, 1/4, ... of their resolution are the same
whatever y is (but for rounding). It takes detail (the order within a block) and context (the half). Noise
with independent signs is not enough: its block means vary, the checkerboard's do not. Leaving out every
second voxel without averaging is no down-sampling in this sense: it folds the checkerboard to a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float32

from benchmarks.cohorts import counters
from benchmarks.cohorts.counters import Axes
from benchmarks.cohorts.heads import Head, base_heads
from benchmarks.cohorts.lattices import Stretched, shrunk
from benchmarks.cohorts.made import MAIN, Made, MadeCohort, Maker, Procedural, Protocol, assembled, covered
from models.errors import InvalidConfig
from models.types import Array, Int64

AMPLITUDE, JITTER, NOISE = 0.15, 0.2, 0.03
NODES = 6
"""Along each axis, of the random lattice whose interpolation is cut to a region."""
PROBED = 32
"""Blocks along each axis at which the cut's height is found."""


def _orders() -> Float32[Array, "73 8"]:
    """Signs in a block, voxels in (z, y, x) order: 70 balanced orders, two checkerboards, and nothing."""
    corners = np.indices((2, 2, 2)).reshape(3, 8).sum(axis=0)
    checkerboard = 1.0 - 2.0 * (corners % 2)
    balanced = np.full((70, 8), -1.0)
    for row, places in zip(balanced, combinations(range(8), 4), strict=True):
        row[list(places)] = 1.0
    return np.vstack([balanced, checkerboard, -checkerboard, np.zeros(8)]).astype(np.float32)


ORDERS = _orders()
BALANCED, CHECKERBOARD, NOTHING = 70, 70, 72


class Scene:
    """A head at `size`^3: its T1, and its brain in blocks of 2 x 2 x 2 voxels."""

    def __init__(self, head: Head, size: int) -> None:
        if size < 8 or size % 4:
            raise InvalidConfig("size", size, "a multiple of 4, from 8 on")
        self.head, self.size = head, size
        self.t1 = Stretched(shrunk(head.t1, size), (size,) * 3)
        self._brain = shrunk(head.brain, size // 2)
        self.blocks = size // 2

    def brain(self, axes: Axes, blocks: int | None = None) -> Bool[Array, "n Z Y X"]:
        """Which blocks are of the brain, of as many as there are along each axis."""
        return Stretched(self._brain, (blocks or self.blocks,) * 3)(axes) > 0.5


@dataclass(frozen=True, eq=False)
class Draw:
    """What is drawn for one volume. `cuts` are the heights (left, right) below which the texture is."""

    amplitude: float
    sign: int
    lattice: Float32[Array, "a b c"]
    cuts: tuple[float, float]
    seeds: tuple[int, int]


class Spread(Procedural):
    """One volume of the cohort."""

    def __init__(self, scene: Scene, draw: Draw) -> None:
        super().__init__((scene.size,) * 3)
        self.scene, self._draw = scene, draw
        self._table = (ORDERS * np.float32(draw.amplitude)).ravel()
        self._cuts = np.array(draw.cuts, np.float32)
        self._field = Stretched(draw.lattice, (scene.blocks,) * 3)

    def values(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """Head, texture or balanced noise, and a scanner's noise."""
        found = self.scene.t1(axes)
        found += self._texture(axes)
        found += np.float32(NOISE) * counters.bells(self._draw.seeds[0], axes)
        return found

    def region(self, axes: Axes) -> tuple[Bool[Array, "n Z Y X"], Bool[Array, "n Z Y X"]]:
        """Which blocks are of the brain, and which of them carry the texture."""
        brain = self.scene.brain(axes)
        left = (axes[2] < self.scene.blocks // 2)[:, None, None, :]
        return brain, brain & (self._field(axes) < np.where(left, *self._cuts))

    def shares(self) -> tuple[float, float]:
        """The shares of the left and of the right half that carry the texture, counted slab by slab."""
        middle, blocks = self.scene.blocks // 2, self.scene.blocks
        counts = np.zeros((2, 2), np.int64)
        for z in range(0, blocks, 8):
            origin, sides = np.array([[z, 0, 0]]), (min(8, blocks - z), blocks, blocks)
            for k, inside in enumerate(self.region(covered(origin, sides))):
                counts[k] += inside[..., :middle].sum(), inside[..., middle:].sum()
        left, right = (counts[1] / counts[0]).tolist()
        return left, right

    def _texture(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """The signs of all voxels, times the amplitude."""
        first = [axis[:, :1] // 2 for axis in axes]
        z, y, x = (low + np.arange(axis.shape[1] // 2 + 1) for low, axis in zip(first, axes, strict=True))
        orders = self._orders((z, y, x)) * 8
        for k, (axis, low) in enumerate(zip(axes, first, strict=True), start=1):
            shape = [len(axis) if j == 0 else -1 if j == k else 1 for j in range(4)]
            index, corner = (axis // 2 - low).reshape(shape), (axis % 2 << (3 - k)).reshape(shape)
            orders = np.take_along_axis(orders, index, k) + corner
        return self._table.take(orders)

    def _orders(self, axes: Axes) -> Int64:
        """The row of `ORDERS` of each block."""
        brain, textured = self.region(axes)
        order = counters.below(BALANCED, self._draw.seeds[1], axes)
        order[textured] = CHECKERBOARD + self._draw.sign
        order[~brain] = NOTHING
        return order


def spread(
    size: int, *, heads: Sequence[Head] | None = None, protocol: Protocol = MAIN, seed: int = 0
) -> MadeCohort:
    """The cohort at `size`^3, a multiple of 4. Raises InvalidConfig.

    The regions are the same, but for rounding, at every size.
    """
    return assembled("spread", base_heads() if heads is None else heads, protocol, seed, _maker(size))


def _maker(size: int) -> Maker:
    def of_head(head: Head) -> Callable[[np.random.Generator], Made]:
        scene = Scene(head, size)

        def of_draw(draw: np.random.Generator) -> Made:
            volume = Spread(scene, _drawn(scene, draw))
            return volume, volume.shares()[0]

        return of_draw

    return of_head


def _drawn(scene: Scene, draw: np.random.Generator) -> Draw:
    """One volume's own numbers."""
    shares = draw.uniform(size=2)
    amplitude = AMPLITUDE * draw.uniform(1 - JITTER, 1 + JITTER)
    sign = int(draw.integers(2))
    lattice = draw.normal(size=(NODES,) * 3).astype(np.float32)
    noise, order = draw.integers(2**63, size=2).tolist()
    return Draw(amplitude, sign, lattice, _cuts(scene, lattice, shares), (noise, order))


def _cuts(scene: Scene, lattice: Float32[Array, "a b c"], shares: Array) -> tuple[float, float]:
    """The heights that shares of the left and of the right half's blocks are below."""
    axes = covered(np.zeros((1, 3), np.int64), (PROBED,) * 3)
    brain, field = scene.brain(axes, PROBED)[0], Stretched(lattice, (PROBED,) * 3)(axes)[0]
    halves = (slice(None, PROBED // 2), slice(PROBED // 2, None))
    left, right = (
        float(np.quantile(field[..., half][brain[..., half]], share))
        for half, share in zip(halves, shares, strict=True)
    )
    return left, right
