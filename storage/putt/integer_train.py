"""A quantised train of small integers, and its values: the same bits on any machine, with any threads.

    x = offset + step q_1 H_2 H_3 ... H_L,    H_b[j] = 2^{-s_b[j] / 16} q_b[j] W

q_b (r_{b-1}, n_b, r_b) are integers, and W is the orthonormal Walsh matrix of the digit, patterns of +1 and
-1 along the axes that have a bit: what is smooth needs few of them. s_b is the logarithm of the norm of a row
of q_b, in sixteenths of an octave: rows of H_b have unit norm, whatever the integers.

H is held in fixed point, in units of 2^-24, and products are rounded to it again. As float64 holds integers
exactly up to 2^53, no matrix product of these rounds, so that their order cannot matter: with u = 2^24 sums
stay below 2^53 = 32 u^2, by the Cauchy-Schwarz inequality, as rows are orthogonal but for rounding. So do
those of the last product, with q_1, of blocks that are coarse enough (`block.FINEST`). Products are made from
the right, for a part of the values as for all: a part has the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import isqrt, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

OCTAVE = 16
"""Steps of `scales` in a factor of two."""
UNIT = 1 << 24


def _fractions() -> Float64:
    """2^(k / 16) for k = 0 ... 15 in units of 2^-30, rounded down; by integers alone."""
    shift = 30 * 16
    return np.array([isqrt(isqrt(isqrt(isqrt(1 << (shift + k))))) for k in range(OCTAVE)], np.float64)


FRACTIONS = _fractions()
LARGEST = 20
"""Bits of an integer that its row's norm is computed with."""


def power(scales: Int64) -> Float64:
    """2^(s / 16), relative error 1e-9; the same bits everywhere."""
    octaves, rest = np.divmod(scales, OCTAVE)
    return np.asarray(np.ldexp(FRACTIONS[rest], octaves - 30))


def lg(values: Float64) -> Int64:
    """log2 of numbers above 0 in sixteenths of an octave, at most 2.4 too low: a float's exponent and the
    first bits of its mantissa.
    """
    return np.asarray((values.view(np.int64) >> 48) - 1023 * OCTAVE)


def scales_of(q: Int64) -> Int64:
    """s of rows of integers (rows, ...): 16 log2 of their norms, at most 1.2 too low. By integers alone."""
    flat = q.reshape(len(q), -1)
    largest = np.maximum(flat.max(axis=1), -flat.min(axis=1))
    shifts = np.maximum(np.frexp(largest.astype(np.float64))[1] - LARGEST, 0)
    if shifts.any():
        flat = np.abs(flat) >> shifts[:, None]
    squares = np.einsum("jk,jk->j", flat, flat)
    return np.asarray((lg(np.maximum(squares, 1).astype(np.float64)) + 1 >> 1) + OCTAVE * shifts)


@cache
def patterns(mode: int) -> Float64:
    """The Walsh matrix (mode, mode) of a power of two: entries +1 and -1, its own transpose."""
    matrix = np.ones((1, 1))
    while len(matrix) < mode:
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def walsh(core: NDArray[Any]) -> Float64:
    """(r, n, r') times the Walsh matrix along n: sqrt(n) times an orthonormal transform."""
    return np.asarray(patterns(core.shape[1]) @ core)


@dataclass(frozen=True, eq=False)
class IntegerTrain:
    """`cores[b]` is q_{b+1}, (r, n, r') with r = 1 at first and r' = 1 at last.

    Raises ValueError for cores that do not fit together.
    """

    cores: tuple[Int64, ...]
    step: float
    offset: float

    def __post_init__(self) -> None:
        lefts = [core.shape[0] for core in self.cores]
        if not lefts or [1, *(core.shape[2] for core in self.cores)] != [*lefts, 1]:
            raise ValueError(f"cores of {[core.shape for core in self.cores]} do not fit together")

    @property
    def modes(self) -> tuple[int, ...]:
        """Digits of each level."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the inner bonds."""
        return tuple(len(core) for core in self.cores[1:])

    @cached_property
    def rows(self) -> tuple[Float64, ...]:
        """H_2 ... H_L in fixed point: whole numbers, (r, n, r')."""
        return tuple(
            np.rint(walsh(core) * (UNIT / sqrt(core.shape[1]) * power(-scales_of(core)))[:, None, None])
            for core in self.cores[1:]
        )

    @cached_property
    def first(self) -> Float64:
        """q_1 W, (n, r), in units of step / sqrt(n): whole numbers."""
        return np.asarray(walsh(self.cores[0])[0])

    def right(self, bond: int, levels: int) -> Float64:
        """H_{bond+1} ... with means over what is finer than `levels`: (r_bond, n_{bond+1} ... n_levels)."""
        product = np.full((1, 1), float(UNIT))
        for level in range(len(self.cores) - 1, bond - 1, -1):
            row = self.rows[level - 1]
            if level >= levels:
                product = np.rint(row.sum(axis=1) @ product / (UNIT * row.shape[1]))
            else:
                wide = row.reshape(-1, row.shape[2]) @ product
                product = np.rint(wide / UNIT).reshape(len(row), -1)
        return product

    def values(self, levels: int | None = None) -> Float64:
        """All values by digits of the first `levels`, (n_1, ..., n_l): means over what is finer."""
        kept = len(self.cores) if levels is None else levels
        return self._scaled(self.first @ self.right(1, kept)).reshape(self.modes[:kept])

    def blocks(self, prefixes: Int64) -> Float64:
        """The values of m blocks, whose first digits are given, (m, b) with b >= 1: (m, n_{b+1} ... n_L)."""
        bond = prefixes.shape[1]
        of = np.zeros(len(prefixes), np.int64)
        known = self.right(bond, len(self.cores))[None]
        for level in range(bond - 1, 0, -1):
            longer, numbers = np.unique(prefixes[:, level:], axis=0, return_inverse=True)
            shorter = np.zeros(len(longer), np.int64)
            shorter[numbers] = of
            core = self.rows[level - 1][:, longer[:, 0]].transpose(1, 0, 2)
            known, of = np.rint(core @ known[shorter] / UNIT), numbers
        return self._scaled((self.first[prefixes[:, 0], None] @ known[of])[:, 0])

    def _scaled(self, product: Float64) -> Float64:
        """Of whole numbers in units of step / (2^24 sqrt(n_1))."""
        return self.offset + product * (self.step / (UNIT * sqrt(len(self.first))))
