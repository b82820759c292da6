"""Lattices stretched over a grid of any size: shrunk by averaging once, enlarged by interpolation on the way.

Along each axis the grid's N cells and the lattice's n cells cover the same length. Enlarging is linear
between centres, and constant beyond the outermost; every value takes the same steps in the same order (z, y,
x) whatever box it is in, so that boxes agree to the last bit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.cohorts.counters import Axes
from models.types import Array, Int64

Shape = tuple[int, int, int]


class Stretched:
    """A lattice (two or more cells along each axis) over a grid of `shape`."""

    def __init__(self, lattice: Float32[Array, "a b c"], shape: Shape) -> None:
        self.lattice, self.shape = lattice, shape

    def __call__(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """The values in boxes; each of `axes` ascends by one."""
        values, places = self._windows(axes)
        for k, (index, weight) in enumerate(places, start=1):
            upper = weight.reshape([-1 if j == k else len(index) if j == 0 else 1 for j in range(4)])
            values = _taken(values, index, k) * (1 - upper) + _taken(values, index + 1, k) * upper
        return values

    def _windows(self, axes: Axes) -> tuple[Array, list[tuple[Int64, Float32[Array, "n m"]]]]:
        """The part of the lattice that each box needs, and where in it each place lies."""
        starts, spans, places = [], [], []
        for axis, cells, size in zip(axes, self.lattice.shape, self.shape, strict=True):
            low, weight = _between(axis, cells, size)
            spans.append(int((low[:, -1] - low[:, 0]).max()) + 2)
            starts.append(np.minimum(low[:, 0], cells - spans[-1]))
            places.append((low - starts[-1][:, None], weight))
        if len(starts[0]) == 1:
            box = tuple(slice(int(at[0]), int(at[0]) + span) for at, span in zip(starts, spans, strict=True))
            return self.lattice[box][None], places
        z, y, x = starts
        return sliding_window_view(self.lattice, spans)[z, y, x], places


def shrunk(lattice: Array, size: int) -> Float32[Array, "a b c"]:
    """The lattice averaged to `size` cells along each axis that has more."""
    values = lattice.astype(np.float64)
    for k, cells in enumerate(lattice.shape):
        if cells > size:
            values = np.moveaxis(np.tensordot(_overlaps(cells, size), values, (1, k)), 0, k)
    return values.astype(np.float32)


def _overlaps(cells: int, size: int) -> Float64[Array, "size cells"]:
    """Which share of each of `size` equal parts each of `cells` equal parts is."""
    parts, whole = np.arange(size)[:, None] * (cells / size), np.arange(cells)
    common = np.minimum(parts + cells / size, whole + 1) - np.maximum(parts, whole)
    return np.asarray(np.clip(common, 0, None) * (size / cells))


def _between(axis: Int64, cells: int, size: int) -> tuple[Int64, Float32[Array, "n m"]]:
    """The lower of the two cells that each place lies between, and the weight of the upper one."""
    place = np.clip((axis + 0.5) * cells / size - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), cells - 2)
    return low, (place - low).astype(np.float32)


def _taken(values: Array, index: Int64, axis: int) -> Array:
    """Along an axis, for each box its own cells."""
    if len(index) == 1:
        return np.asarray(values.take(index[0], axis))
    shape = [len(index), 1, 1, 1]
    shape[axis] = -1
    taken: Array = np.take_along_axis(values, index.reshape(shape), axis)
    return taken
