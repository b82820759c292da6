"""How large a coefficient is expected to be, from all that passed before it: weighted sums of magnitudes.

Of a band b at phase p and place i,

    m = c_pb + sum_b' (u_pbb' |q_b'(parent)| + v_pbb' B_b'(parent)) + w_pb A(parent) + sum_kb' w_pkbb' N_kb'

The parent is the place i of the next coarser level, along axes which that level halves, and the same place
along others; B is its bands' magnitudes under the weights (1 2 1) along each axis, ends repeated, and A the
sum of all bands' B at the level above. N_k is the sum over the 2, 4 or 8 nearest places of phase p ^ k, where
that one has passed, on both sides along the axes of k; at ends, what is missing is what is on the other side.
Levels that do not halve z, of which there are 3 bands, have weights of their own (`weights`).

Magnitudes are at most CAP, weights are whole numbers in units of 2^-FRACTION, and `weights` keeps sums below
2^24: float32 holds all of them exactly, in whatever order a matrix product adds them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from storage.wavelet.bands import Int32, Level, odd_along, phase
from storage.wavelet.lifting import Split
from storage.wavelet.weights import DEEP, FLAT, PARENTS, Weights

Float32 = NDArray[np.float32]

CAP = 511
BOX = 64
"""What the weights of B add up to."""
ALL = 7
"""Bands of a level of three axes."""


@dataclass(frozen=True)
class Coarser:
    """What is known of a level to the next finer one: B and the magnitudes of bands that it has, and A."""

    split: Split
    parents: Float32
    """(z, y, x, PARENTS)."""

    def at(self, number: int, half: tuple[int, int, int]) -> Float32:
        """The parents of a phase, of such sides."""
        starts = zip(self.split, odd_along(number), strict=True)
        told = self.parents[tuple(slice(None) if cut else slice(int(odd), None, 2) for cut, odd in starts)]
        return told[tuple(map(slice, half))]


def of_the_coarsest(level: Level, mean: int) -> Coarser:
    """Parents of a level that has none: all as large as its mean magnitude is said to be."""
    parents = np.full((*level.half, PARENTS), float(min(mean, CAP)), np.float32)
    parents[..., ALL:] *= BOX
    parents[..., -1] *= ALL
    return Coarser((True, True, True), parents)


class Expected:
    """The expectations of one level, phase by phase in `bands.ORDER`."""

    def __init__(self, level: Level, coarser: Coarser) -> None:
        self._level, self._coarser = level, coarser
        self._passed: dict[int, Float32] = {}

    def of(self, number: int) -> Float32:
        """Of the integers of the next phase: (z, y, x, band), in units of 2^-FRACTION, at least 1."""
        known = [self._coarser.at(number, self._level.half), *self._neighbours(number)]
        weights = _weights(self._level.split[0], self._level.bands, number)
        told = np.concatenate(known, axis=-1).reshape(-1, len(weights.known))
        sums = told @ weights.known + weights.constant
        return np.asarray(sums.reshape(*self._level.half, len(self._level.bands)))

    def learn(self, number: int, integers: Int32) -> None:
        """What the integers of that phase are."""
        self._passed[number] = np.minimum(np.abs(integers), CAP).astype(np.float32)

    def known(self) -> Coarser:
        """What the next finer level may know, when all phases have passed, or none as all integers are 0."""
        magnitudes = self._level.empty().astype(np.float32)
        above = np.zeros(magnitudes.shape[:3], np.float32)
        for number in range(8):
            if self._passed:
                phase(magnitudes, number)[...] = self._passed[number]
            parents = self._coarser.at(number, self._level.half)
            phase(above, number)[...] = parents[..., ALL:-1].sum(axis=-1)
        present = np.array(self._level.bands) - 1
        parents = np.zeros((*magnitudes.shape[:3], PARENTS), np.float32)
        parents[..., present] = magnitudes
        parents[..., present + ALL] = _smooth(magnitudes)
        parents[..., -1] = above
        return Coarser(self._level.split, parents)

    def _neighbours(self, number: int) -> Iterator[Float32]:
        """N_k by k, of phases that have passed."""
        for apart in range(1, 8):
            if number ^ apart in self._passed:
                sums = self._passed[number ^ apart]
                for axis, differs in enumerate(odd_along(apart)):
                    if differs:
                        sums = _pairs(sums, axis, after=odd_along(number)[axis])
                yield sums


def _pairs(stack: Float32, axis: int, *, after: bool) -> Float32:
    """Each place with the one after it, or before it, along an axis."""
    sums = np.empty_like(stack)
    lines, into = stack.swapaxes(0, axis), sums.swapaxes(0, axis)
    inner, end = (into[:-1], -1) if after else (into[1:], 0)
    np.add(lines[:-1], lines[1:], out=inner)
    np.add(lines[end], lines[end], out=into[end])
    return sums


def _smooth(stack: Float32) -> Float32:
    """B: sums of whole numbers."""
    for axis in range(3):
        stack = _pairs(stack, axis, after=True) + _pairs(stack, axis, after=False)
    return stack


@lru_cache
def _weights(deep: bool, bands: tuple[int, ...], number: int) -> Weights:
    """Those of the bands that there are."""
    every = (DEEP if deep else FLAT)[number]
    count, places = len(every.constant), np.array(bands) - 1
    rows = np.arange(len(every.known))
    kept = (rows < PARENTS) | np.isin((rows - PARENTS) % count, places)
    return Weights(np.ascontiguousarray(every.known[kept][:, places]), every.constant[places])
