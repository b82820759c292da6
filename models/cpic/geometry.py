"""Which boxes to encode so that the wanted voxels cost least: neighbours share most of an encoder's work.

A box of Z x Y x X output voxels is read with a margin of half a receptive field on all sides, and encoded
whole. What that takes is counted in multiplications, and voxels read, boxes and calls count as so many more:

    cost(box) = multiplications + those of row ends + VOXEL_COST * voxels read + BOX_COST,

where a row along x costs as much as one output more, in each layer: short rows keep a processor less busy.

Boxes are tiles of fixed grids, one for each of `SHAPES`: few shapes, since an encoder is fast on many boxes
of one shape. From small shapes to large ones, a tile takes over the wanted voxels in it where it costs less
than they do so far, each its share of the tile that has it. So runs become tubes along any axis, sheets
planes and dense regions bricks, wherever that pays; the rest are cubes around single voxels, "points". Costs
are integers: the same voxels have the same boxes on every machine. No array is longer than the wanted voxels,
however large the volume is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from models.types import Int64

Sides = tuple[int, int, int]
WorkOf = Callable[[Sides], "Work"]
"""What encoding a box takes that has these sides of outputs."""

POINT: Sides = (1, 1, 1)
SHAPES: tuple[Sides, ...] = (
    (1, 1, 16),
    (1, 16, 1),
    (16, 1, 1),
    (1, 1, 64),
    (1, 64, 1),
    (64, 1, 1),
    (1, 16, 16),
    (16, 1, 16),
    (16, 16, 1),
    (16, 16, 16),
)
"""Sides of boxes of more than one output voxel, small ones first; powers of two."""
NEIGHBOURHOOD: Sides = (64, 64, 64)
"""Every box lies in one tile of this size: a voxel that is alone there is alone."""
VOXEL_COST = 100
BOX_COST = 500_000
CALL_COST = 15_000_000
"""In multiplications, of which a core makes about 50 per nanosecond: 2 ns, 10 us and 0.3 ms."""


@dataclass(frozen=True)
class Work:
    """What encoding one box takes: multiplications, voxels read, and numbers before and after all layers.

    `row_ends` is the multiplications of one further output in each row along x.
    """

    multiplications: int
    row_ends: int
    voxels: int
    numbers: int

    @property
    def cost(self) -> int:
        """All of it, in multiplications."""
        return self.multiplications + self.row_ends + VOXEL_COST * self.voxels + BOX_COST


@lru_cache(maxsize=1024)
def convolution_work(widths: tuple[int, ...], kernel: int, outputs: Sides) -> Work:
    """Of convolutions without padding, each with `kernel`^3 weights, between layers of `widths` channels."""
    margin = kernel - 1
    layers = len(widths) - 1
    voxels = [prod(side + margin * (layers - k) for side in outputs) for k in range(layers + 1)]
    rows = [count // (outputs[2] + margin * (layers - k)) for k, count in enumerate(voxels)]
    weights = [kernel**3 * before * after for before, after in pairwise(widths)]
    return Work(
        sum(weight * count for weight, count in zip(weights, voxels[1:], strict=True)),
        sum(weight * count for weight, count in zip(weights, rows[1:], strict=True)),
        voxels[0],
        sum(width * count for width, count in zip(widths, voxels, strict=True)),
    )


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of equal sides, and which wanted voxels are in them.

    `corners` (b, 3) are the boxes' lowest voxels. The wanted voxel number `rows[i]` is the output `at[i]`,
    counted through all boxes; `at` (m,) ascends.
    """

    sides: Sides
    corners: Int64
    rows: Int64
    at: Int64

    def __len__(self) -> int:
        return len(self.corners)


def cover(voxels: Int64, shape: tuple[int, int, int], work: WorkOf) -> tuple[Boxes, ...]:
    """Boxes that hold each of the distinct linear voxel indices (m,) of a volume once."""
    zyx = np.stack(np.unravel_index(voxels, shape))
    chosen = np.zeros(len(voxels), np.int64)
    if work(POINT).voxels > 1 and len(voxels) * work(POINT).cost > CALL_COST:
        order, _, counts = _tiles(_tile_numbers(zyx, shape, NEIGHBOURHOOD))
        near = np.sort(order[np.repeat(counts > 1, counts)])
        chosen[near] = _cheapest(zyx[:, near], shape, work)
    return _boxes(zyx, shape, chosen, work)


def _cheapest(zyx: Int64, shape: Sides, work: WorkOf) -> Int64:
    """For each voxel (3, m) the number of its box's shape, counted from 1 as in `SHAPES`; 0 for a point."""
    share = np.full(zyx.shape[1], work(POINT).cost, np.int64)
    chosen = np.zeros(zyx.shape[1], np.int64)
    for number, sides in enumerate(SHAPES, 1):
        order, first, counts = _tiles(_tile_numbers(zyx, shape, sides))
        price = work(sides).cost
        saved = np.add.reduceat(share[order], first) - price if len(first) else first
        better = _worthwhile(saved)
        taken = order[np.repeat(better, counts)]
        share[taken] = np.repeat(price // counts[better], counts[better])
        chosen[taken] = number
    return chosen


def _worthwhile(saved: Int64) -> NDArray[np.bool_]:
    """Which boxes of one shape to make: those that save something, if together they save a call as well."""
    better = saved > 0
    return better if int(saved[better].sum()) > CALL_COST else np.zeros(len(saved), bool)


def _boxes(zyx: Int64, shape: Sides, chosen: Int64, work: WorkOf) -> tuple[Boxes, ...]:
    """The chosen tiles, with the voxels that no larger tile took; points where those are too few."""
    found, single = [], [np.flatnonzero(chosen == 0)]
    for number, sides in enumerate(SHAPES, 1):
        rows = np.flatnonzero(chosen == number)
        if len(rows) == 0:
            continue
        order, _, counts = _tiles(_tile_numbers(zyx[:, rows], shape, sides))
        kept = np.repeat(_worthwhile(counts * work(POINT).cost - work(sides).cost), counts)
        single.append(rows[order[~kept]])
        if kept.any():
            found.append(_grouped(zyx, np.sort(rows[order[kept]]), shape, sides))
    rows = np.sort(np.concatenate(single))
    return (Boxes(POINT, zyx[:, rows].T, rows, np.arange(len(rows))), *found) if len(rows) else tuple(found)


def _grouped(zyx: Int64, rows: Int64, shape: Sides, sides: Sides) -> Boxes:
    """The tiles that hold the voxels `rows`."""
    places, side = zyx[:, rows], np.array(sides)[:, None]
    z, y, x = places % side
    numbers = _tile_numbers(places, shape, sides) * prod(sides) + (z * sides[1] + y) * sides[2] + x
    order = np.argsort(numbers)
    tiles, offset = np.divmod(numbers[order], prod(sides))
    first, box = np.unique(tiles, return_index=True, return_inverse=True)[1:]
    corners = (places - places % side)[:, order[first]].T
    return Boxes(sides, corners, rows[order], box * prod(sides) + offset)


def _tile_numbers(zyx: Int64, shape: Sides, sides: Sides) -> Int64:
    """The linear numbers of the tiles that voxels (3, m) lie in."""
    z, y, x = (axis >> (side.bit_length() - 1) for axis, side in zip(zyx, sides, strict=True))
    _, Y, X = (-(-size // side) for size, side in zip(shape, sides, strict=True))
    return np.asarray((z * Y + y) * X + x)


def _tiles(numbers: Int64) -> tuple[Int64, Int64, Int64]:
    """An order in which equal tile numbers are neighbours, where each tile begins in it, and its size."""
    order = np.argsort(numbers)
    ordered = numbers[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return order, first, np.diff(np.append(first, len(numbers)))
