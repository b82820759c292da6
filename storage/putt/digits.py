"""A block's voxels by the bits of their places: mode 8 for a cube, as in PuTT, fewer where an axis has ended.

A block of sides (z, y, x) is padded to powers of two, 2^a each, by repeating its last voxels. Level l = 1 ...
L, L the largest a, has one bit of each axis that has as many: the coarsest bits first, so that the last level
joins neighbours, whatever the sides. Within a level the digit is (bit_z, bit_y, bit_x), z the most
significant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf, prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Array = NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """The levels of a block of `shape` voxels. Make one with `Digits.of`."""

    shape: Shape

    @classmethod
    def of(cls, shape: Shape) -> Self:
        """Raises ValueError for a block without voxels."""
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a block of {shape} has no voxels: three sides of at least 1 each")
        return cls(shape)

    @cached_property
    def bits(self) -> Shape:
        """Of each axis."""
        z, y, x = (max(0, (side - 1).bit_length()) for side in self.shape)
        return z, y, x

    @property
    def padded(self) -> Shape:
        """Sides, with what is repeated."""
        z, y, x = (1 << bits for bits in self.bits)
        return z, y, x

    @property
    def levels(self) -> int:
        """L; one at least, of a single digit, for a single voxel."""
        return max(1, *self.bits)

    @cached_property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """Which axes have a bit at each level, the coarsest first."""
        return tuple(
            tuple(axis for axis in range(3) if self.bits[axis] >= self.levels - level)
            for level in range(self.levels)
        )

    @property
    def modes(self) -> tuple[int, ...]:
        """Digits of each level."""
        return tuple(1 << len(axes) for axes in self.axes)

    @property
    def numbers(self) -> NDArray[np.intp]:
        """Where each voxel's value stands among those by digits, (z, y, x)."""
        return _numbers(self.shape)

    def split(self, values: Array) -> Array:
        """Values (z, y, x) by digits, (n_1, ..., n_L); contiguous."""
        pad = [(0, whole - side) for side, whole in zip(self.shape, self.padded, strict=True)]
        by_bits = np.pad(values, pad, mode="edge").reshape((2,) * sum(self.bits))
        return np.ascontiguousarray(by_bits.transpose(self._order)).reshape(self.modes)

    def joined(self, values: Array, levels: int | None = None) -> Array:
        """Values by the digits of the first `levels`, (n_1, ..., n_l), as voxels: of all, (z, y, x), else
        coarser ones, and then padded still.
        """
        if levels is None:
            return values.reshape(-1)[self.numbers]
        bits = [max(0, own - (self.levels - levels)) for own in self.bits]
        order = [place for place in self._order if self._level_of(place) < levels]
        ranked = np.argsort(np.argsort(order))
        by_bits = values.reshape((2,) * len(order)).transpose(np.argsort(ranked))
        return by_bits.reshape([1 << own for own in bits])

    def prefixes(self, places: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
        """The first digits (m, levels) of sub-blocks, by their places (m, 3) in the grid of these."""
        left = self.levels - levels
        digits = np.zeros((len(places), levels), np.int64)
        for level, axes in enumerate(self.axes[:levels]):
            for axis in axes:
                bit = self.levels - 1 - level - left
                digits[:, level] = 2 * digits[:, level] + (places[:, axis] >> bit & 1)
        return digits

    @cached_property
    def _order(self) -> list[int]:
        """The bits of (z, y, x), numbered axis by axis and coarsest first, in the order of the digits."""
        starts = (0, self.bits[0], self.bits[0] + self.bits[1])
        return [
            starts[axis] + level - (self.levels - self.bits[axis])
            for level, axes in enumerate(self.axes)
            for axis in axes
        ]

    def _level_of(self, place: int) -> int:
        starts = (0, self.bits[0], self.bits[0] + self.bits[1], inf)
        axis = next(number for number in range(3) if starts[number] <= place < starts[number + 1])
        return int(place - starts[axis]) + self.levels - self.bits[axis]


@lru_cache(maxsize=8)
def _numbers(shape: Shape) -> NDArray[np.intp]:
    """See `Digits.numbers`."""
    digits = Digits(shape)
    numbers = np.arange(prod(digits.padded), dtype=np.intp).reshape(digits.modes)
    return np.ascontiguousarray(digits.joined(numbers, digits.levels)[tuple(map(slice, shape))])
