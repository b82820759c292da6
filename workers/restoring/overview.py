"""A frame in cells, each the mean of what was observed in it, and those without anything bent as little as
the others allow: something to say of every voxel, however far the next observed one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from storage.derived import Box
from storage.layout import VIEWING
from workers.restoring.boxes import Array, Bools, Float64, shards_of
from workers.restoring.filling import filled_box
from workers.windows import Shape

CELL, MOST_CELLS = 8, 128
"""Side of a cell, doubled until there are no more of them along an axis."""
FILLING_ARRAYS = 19
"""Float64 arrays of all cells, in a cube of side 2^L, that are held at once: 16 by what fills them."""


@dataclass(frozen=True, eq=False)
class Overview:
    """Of one frame: the cells, and between which values all that was observed lies."""

    cells: Float64
    side: int
    low: float
    high: float

    @classmethod
    def of(cls, shape: Shape, read: Callable[[Box], tuple[Array, Bools]], device: str) -> Overview | None:
        """Of what `read` gives for each box: values, and which of them count; None where none does."""
        side = _cell_side(shape)
        sums, counts = np.zeros((2, *_cells(shape)))
        low, high = math.inf, -math.inf
        for box in shards_of(shape):
            values, seen = read(box)
            if seen.any():
                low, high = min(low, float(values[seen].min())), max(high, float(values[seen].max()))
            place = tuple(slice(part.start // side, -(-part.stop // side)) for part in box)
            sums[place] += _by_cells(np.where(seen, values, 0), side)
            counts[place] += _by_cells(seen, side)
        if not counts.any():
            return None
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        return cls(filled_box(means, counts > 0, device, smoothly=True), side, low, high)

    def at(self, box: Box) -> Float64:
        """Between the cells' centres linear, beyond the outermost ones constant."""
        found = self.cells
        for axis, part in enumerate(box):
            places = np.clip(
                (np.arange(part.start, part.stop) + 0.5) / self.side - 0.5, 0, found.shape[axis] - 1
            )
            below = np.minimum(places.astype(np.int64), max(found.shape[axis] - 2, 0))
            above = np.minimum(below + 1, found.shape[axis] - 1)
            weight = (places - below).reshape([-1 if one == axis else 1 for one in range(3)])
            found = (1 - weight) * found.take(below, axis) + weight * found.take(above, axis)
        return found


def overview_bytes(shape: Shape) -> tuple[int, int]:
    """What an overview takes while it is made, and when it is."""
    side: int = 1 << (max(_cells(shape)) - 1).bit_length()
    return FILLING_ARRAYS * 8 * side**3, 8 * math.prod(_cells(shape))


def far_from(known: Bools) -> Bools:
    """The middle voxel of each cell that has nothing known in it, nor in any beside it."""
    empty = _by_cells(known, CELL) == 0
    for axis in range(3):
        padded = np.pad(empty, [(int(one == axis),) * 2 for one in range(3)], constant_values=True)
        length = empty.shape[axis]
        empty = np.logical_and.reduce([padded.take(range(by, by + length), axis) for by in range(3)])
    middles = tuple(
        np.minimum(CELL * np.arange(n) + CELL // 2, m - 1)
        for n, m in zip(empty.shape, known.shape, strict=True)
    )
    far = np.zeros_like(known)
    far[np.ix_(*middles)] = empty
    return far


def _by_cells(values: Array, side: int) -> Float64:
    """Sums over cells of a box; those at its end may be shorter."""
    padded = np.pad(values, [(0, -length % side) for length in values.shape])
    z, y, x = (length // side for length in padded.shape)
    sums: Float64 = padded.reshape(z, side, y, side, x, side).sum(axis=(1, 3, 5), dtype=np.float64)
    return sums


def _cell_side(shape: Shape) -> int:
    side = CELL
    while side < min(VIEWING.shard) and max(shape) > side * MOST_CELLS:
        side *= 2
    return side


def _cells(shape: Shape) -> Shape:
    z, y, x = (-(-length // _cell_side(shape)) for length in shape)
    return z, y, x
