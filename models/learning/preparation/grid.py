"""One grid: centred cropping and padding, and separable linear interpolation.

An axis of N voxels is seen as one of M. Output o stands at c = step o' + ((N - 1) - step (N' - 1)) / 2 of the
input, where N' = N / step, rounded, is the size after interpolation and o' = o + floor((N' - M) / 2): both
extents have one centre, before and after. With f = c - floor(c),

    out(o) = (1 - f) in(floor c) + f in(floor c + 1),

edge voxels being constant to the end of their extent; beyond is background. Where `average` is asked for and
the step is above `AVERAGED_FROM`, out(o) is the mean of the input over [c - step / 2, c + step / 2] instead,
voxels being constant over their extents. A step of 1 copies voxels.

A box is interpolated from one box beneath it, of equal sides for all boxes of a call. As floor c differs from
box to box by the phase, each output has the taps of all phases, with weight 0 where it does not use them:
adding 0 changes no bit, and so a voxel has the same bits whatever box it is asked in. Boxes that lie on very
much are therefore made in parts, and parts that lie beyond the input not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from models.learning.preparation.views import Sides, View
from models.types import Array, CubeSource, Int64

AVERAGED_FROM = 1.5
DRIFT = 0.5
"""Voxels: a step that moves an axis' ends apart by less is taken for 1, so that voxels are copied."""


MOST_READ = 1 << 23
"""Values that are read at once, unless one voxel lies on more."""


class Taps(NamedTuple):
    """Which inputs make an axis' outputs in n boxes: input `at[k] + t` of a box's own has the weight
    `weights[t, n, k]` in output k. `first` (n,) is where each box begins, `length` its side.
    """

    first: Int64
    length: int
    at: Int64
    weights: Float32[Array, "t n k"]


@dataclass(frozen=True)
class Axis:
    """An axis of `inputs` voxels seen as one of `outputs`, `step` voxels apart, both about one centre."""

    inputs: int
    outputs: int
    step: float = 1.0
    average: bool = False

    @classmethod
    def between(cls, inputs: int, outputs: int, step: float, *, average: bool) -> Axis:
        """An axis; one whose step hardly differs from 1 copies voxels."""
        copied = abs(step - 1) * inputs < DRIFT
        return cls(inputs, outputs, 1.0 if copied else step, average and step > AVERAGED_FROM)

    @property
    def resampled(self) -> int:
        """Its size after interpolation, before cropping and padding."""
        return resampled_size(self.inputs, self.step)

    @property
    def copies(self) -> bool:
        """Whether outputs are inputs."""
        return self.step == 1

    @property
    def bounds(self) -> tuple[int, int]:
        """The outputs, from ... to below, that stand within the input's extent."""
        at = self.positions(np.arange(self.outputs))
        inside = np.flatnonzero((at >= -0.5) & (at < self.inputs - 0.5))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)

    def positions(self, outputs: Int64) -> Float64[Array, "..."]:
        """c, the places of outputs in input voxels."""
        shift = ((self.inputs - 1) - self.step * (self.resampled - 1)) / 2
        return np.asarray((outputs + (self.resampled - self.outputs) // 2) * self.step + shift)

    def taps(self, origins: Int64, side: int) -> Taps:
        """Of boxes that begin at outputs `origins` (n,) and have `side` of them."""
        outputs = origins[:, None] + np.arange(side)
        if self.copies:
            first = np.rint(self.positions(origins)).astype(np.int64)
            return Taps(first, side, np.arange(side), np.ones((1, 1, 1), np.float32))
        firsts, weights = (self._averaged if self.average else self._linear)(self.positions(outputs))
        offsets = firsts - firsts[:, :1]
        at = offsets.min(axis=0)
        phase = offsets - at
        shared = np.zeros((len(weights) + int(phase.max()), *phase.shape), np.float32)
        n, k = np.indices(phase.shape)
        for tap, weight in enumerate(weights):
            shared[phase + tap, n, k] = weight
        return Taps(firsts[:, 0], int(at.max()) + len(shared), at, shared)

    def reach(self, side: int) -> int:
        """Inputs, at most, beneath `side` outputs."""
        if self.copies:
            return side
        return math.ceil((side - 1) * self.step) + (math.ceil(self.step) + 3 if self.average else 3)

    def _linear(self, at: Float64[Array, "n k"]) -> tuple[Int64, Float64[Array, "t n k"]]:
        """The first of two inputs, and the weights of both."""
        first = np.floor(at)
        share = np.where(first < 0, 1.0, np.where(first >= self.inputs - 1, 0.0, at - first))
        return first.astype(np.int64), np.stack([1 - share, share])

    def _averaged(self, at: Float64[Array, "n k"]) -> tuple[Int64, Float64[Array, "t n k"]]:
        """The first of the inputs that the footprint overlaps, and the weights of all."""
        first = np.floor(at - self.step / 2 + 0.5)
        low = np.maximum(at - self.step / 2, -0.5)
        high = np.minimum(at + self.step / 2, self.inputs - 0.5)
        edges = first + np.arange(math.ceil(self.step) + 2).reshape(-1, 1, 1) - 0.5
        overlaps = np.diff(np.clip(edges, low, np.maximum(low, high)), axis=0)
        total = overlaps.sum(axis=0)
        return first.astype(np.int64), overlaps / np.where(total > 0, total, 1.0)


def resampled_size(inputs: int, step: float) -> int:
    """Voxels of an axis after interpolation."""
    return max(1, round(inputs / step))


class Regridded(View):
    """A float32 volume of values within `limits` on another grid; `axes` are those of (z, y, x)."""

    def __init__(
        self, source: CubeSource, axes: Sequence[Axis], background: float, limits: tuple[float, float]
    ) -> None:
        z, y, x = (axis.outputs for axis in axes)
        low, high = np.array([axis.bounds for axis in axes]).T
        super().__init__((z, y, x), source.channels, low, high, background)
        self._source, self._axes, self._limits = source, tuple(axes), limits

    def _made(self, origins: Int64, sides: Sides) -> Float32[Array, "n c z y x"]:
        if self._fits(len(origins), sides):
            return self._read(origins, sides)
        boxes = np.empty((len(origins), self.channels, *sides), np.float32)
        self._make_parts(boxes, origins)
        return boxes

    def _fits(self, count: int, sides: Sides) -> bool:
        """Whether so many boxes can be read at once."""
        beneath = math.prod(axis.reach(side) for axis, side in zip(self._axes, sides, strict=True))
        return count * self.channels * beneath <= MOST_READ

    def _make_parts(self, boxes: Float32[Array, "n c z y x"], origins: Int64) -> None:
        """Fill boxes, half by half, as far as they meet the input's extent."""
        sides = boxes.shape[2:]
        if not ((origins + sides > self._low) & (origins < self._high)).all(axis=1).any():
            boxes[...] = self._background
        elif self._fits(len(boxes), sides) or boxes[:, 0].size == 1:
            boxes[...] = self._read(origins, sides)
        elif len(boxes) > 1:
            half = len(boxes) // 2
            self._make_parts(boxes[:half], origins[:half])
            self._make_parts(boxes[half:], origins[half:])
        else:
            longest = max(
                (number for number in range(3) if sides[number] > 1),
                key=lambda number: self._axes[number].reach(sides[number]),
            )
            half = sides[longest] // 2
            first, second = np.split(boxes, [half], axis=2 + longest)
            self._make_parts(first, origins)
            self._make_parts(second, origins + half * np.eye(3, dtype=np.int64)[longest])

    def _read(self, origins: Int64, sides: Sides) -> Float32[Array, "n c z y x"]:
        taps = [
            axis.taps(origins[:, number], side)
            for number, (axis, side) in enumerate(zip(self._axes, sides, strict=True))
        ]
        z, y, x = (each.length for each in taps)
        values = self._source.cubes(np.stack([each.first for each in taps], axis=1), (z, y, x))
        if all(axis.copies for axis in self._axes):
            return values
        for number, (axis, each) in enumerate(zip(self._axes, taps, strict=True)):
            if not axis.copies:
                values = _weighted(values, 2 + number, each)
        return np.clip(values, *self._limits, out=values)  # weights sum to 1 up to rounding


def _weighted(values: Float32[Array, "..."], axis: int, taps: Taps) -> Float32[Array, "..."]:
    """Sums of weighted inputs along one axis, tap by tap."""
    shape = [1] * values.ndim
    shape[0], shape[axis] = taps.weights.shape[1:]
    total = _picked(values, axis, taps.at) * taps.weights[0].reshape(shape)
    for tap, weights in enumerate(taps.weights[1:], 1):
        total += _picked(values, axis, taps.at + tap) * weights.reshape(shape)
    return np.asarray(total)


def _picked(values: Float32[Array, "..."], axis: int, at: Int64) -> Float32[Array, "..."]:
    """Some of an axis; a view where they are neighbours."""
    if (np.diff(at) == 1).all():
        return np.asarray(values[(slice(None),) * axis + (slice(int(at[0]), int(at[-1]) + 1),)])
    return np.take(values, at, axis)
