"""Overlapping windows of a volume, and their weights, by which what is made of each goes over into the next.

Along each axis windows of one side begin at multiples of a step, the last one where it ends with the volume.
A window's weight rises over the overlap, linearly, from each of its faces that has a neighbour, and the
weights along an axis are divided by their sum: products of three of them add up to 1 at every voxel (a
partition of unity), whatever the shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.derived import Box

Float64 = NDArray[np.float64]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """Where a window lies, and its weights along each axis, (side,) each."""

    box: Box
    weights: tuple[Float64, Float64, Float64]

    def part(self, box: Box) -> Box:
        """What it shares with a box, its places counted from the box's first voxel."""
        return within(shared(box, self.box), box)

    def weight(self, box: Box) -> Float64:
        """Of the voxels of a box that it shares with the window."""
        z, y, x = (
            own[part.start - mine.start : part.stop - mine.start]
            for own, part, mine in zip(self.weights, box, self.box, strict=True)
        )
        return z[:, None, None] * y[:, None] * x


@dataclass(frozen=True)
class _Line:
    """The windows along one axis: where each begins, and their weights (windows, side)."""

    side: int
    origins: tuple[int, ...]
    weights: Float64

    @classmethod
    def of(cls, length: int, side: int, overlap: int) -> _Line:
        last = length - side
        origins = (*range(0, last, side - overlap), last)
        rise = np.minimum(np.arange(1, side + 1) / (overlap + 1), 1) if overlap else np.ones(side)
        raw = np.ones((len(origins), side))
        raw[1:] *= rise
        raw[:-1] *= rise[::-1]
        total = np.zeros(length)
        for origin, weights in zip(origins, raw, strict=True):
            total[origin : origin + side] += weights
        sums = np.stack([total[origin : origin + side] for origin in origins])
        return cls(side, origins, raw / sums)

    def touching(self, part: slice) -> list[int]:
        """The numbers of the windows that share a voxel with a part of the axis."""
        return [
            number
            for number, origin in enumerate(self.origins)
            if origin < part.stop and origin + self.side > part.start
        ]


@dataclass(frozen=True)
class Windows:
    """All windows of a volume. Make them with `Windows.over`."""

    lines: tuple[_Line, _Line, _Line]

    @classmethod
    def over(cls, shape: Shape, sides: Shape, share: float = 0.0) -> Windows:
        """Windows of `sides`, no longer than the axes, of which the next one shares so much, below 1."""
        z, y, x = (
            _Line.of(length, side, int(share * side)) for length, side in zip(shape, sides, strict=True)
        )
        return cls((z, y, x))

    def touching(self, box: Box) -> Iterator[Window]:
        """Those that share a voxel with a box, in C order."""
        numbers = (line.touching(part) for line, part in zip(self.lines, box, strict=True))
        for index in itertools.product(*numbers):
            yield self._window(index)

    def around(self, box: Box) -> Box:
        """The box that holds all of them."""
        z, y, x = (
            slice(line.origins[numbers[0]], line.origins[numbers[-1]] + line.side)
            for line, numbers in (
                (line, line.touching(part)) for line, part in zip(self.lines, box, strict=True)
            )
        )
        return z, y, x

    def __len__(self) -> int:
        return math.prod(len(line.origins) for line in self.lines)

    def __getitem__(self, number: int) -> Window:
        return self._window(np.unravel_index(number, [len(line.origins) for line in self.lines]))

    def _window(self, index: Any) -> Window:
        (z, wz), (y, wy), (x, wx) = (
            (slice(line.origins[i], line.origins[i] + line.side), line.weights[i])
            for line, i in zip(self.lines, index, strict=True)
        )
        return Window((z, y, x), (wz, wy, wx))


def shared(one: Box, other: Box) -> Box:
    """The box of the voxels in both."""
    z, y, x = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return z, y, x


def within(box: Box, outer: Box) -> Box:
    """The same box, its places counted from the first voxel of another that holds it."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))
    return z, y, x


def shape_of(box: Box) -> Shape:
    """Its sides."""
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x


def shortened(shape: Shape, side: int) -> Shape:
    """Sides of a window, no longer than the axes."""
    z, y, x = (min(side, length) for length in shape)
    return z, y, x
