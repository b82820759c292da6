"""The biorthogonal 9/7 wavelet transform by lifting, level by level along the axes that each one splits.

    d += a (s + s'),    s += b (d' + d),    d += c (s + s'),    s += e (d' + d),    s *= g,    d *= 1 / g

s are values at even places and d at odd ones, s' and d' their neighbours on the other side; beyond the ends
values are mirrored. Constants are those of Daubechies and Sweldens, "Factoring wavelet transforms into
lifting steps", J. Fourier Analysis and Applications 4 (1998), sec. 7.7, scaled such that a constant becomes
sqrt(2) times as large in s: near to an orthonormal transform. s stands before d, and a level is made of what
is s along all axes that the one before it splits.

Each lifting step is a float64 sum, a product with a constant and another sum, each by itself and element by
element: IEEE 754 says what each gives to the last bit, nothing is added up in an order that a library could
choose, and no product is fused with a sum. So the same coefficients give the same values on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Shape = tuple[int, int, int]
Split = tuple[bool, bool, bool]
"""Along which axes a level splits what it is made of; the finest level stands first."""

PREDICT = -1.586134342059924, 0.882911075530934
UPDATE = -0.052980118572961, 0.443506852043971
GAIN = 1.149604398860241
"""sqrt(2) / 1.230174104914001."""
INVERSE_GAIN = 0.8698644516247808
SHORTEST, MOST_LEVELS = 8, 4
"""Sides below SHORTEST are not split."""


def most_levels(side: int) -> int:
    """How many levels an axis of so many places may have."""
    levels = 0
    while side >= SHORTEST and levels < MOST_LEVELS:
        side, levels = (side + 1) // 2, levels + 1
    return levels


def corners(shape: Shape, splits: Sequence[Split]) -> list[Shape]:
    """The sides of what each level is made of, and at last of what remains."""
    sides = [shape]
    for split in splits:
        z, y, x = ((side + 1) // 2 if cut else side for side, cut in zip(sides[-1], split, strict=True))
        sides.append((z, y, x))
    return sides


def transformed(values: Float64, splits: Sequence[Split]) -> Float64:
    """The coefficients of values (z, y, x), in an array of their shape."""
    z, y, x = values.shape
    coefficients = values.copy()
    for split, sides in zip(splits, corners((z, y, x), splits), strict=False):
        corner = part = coefficients[_corner(sides)]
        for cut in reversed(split):
            part = _last_axis_split(part) if cut else np.moveaxis(part, -1, 0)
        corner[...] = part
    return coefficients


def restored(coefficients: Float64, splits: Sequence[Split]) -> Float64:
    """The values whose coefficients these are."""
    z, y, x = coefficients.shape
    values = coefficients.copy()
    levels = list(zip(splits, corners((z, y, x), splits), strict=False))
    for split, sides in reversed(levels):
        corner = part = values[_corner(sides)]
        for cut in split:
            part = _first_axis_joined(part) if cut else np.moveaxis(part, 0, -1)
        corner[...] = part
    return values


def _corner(sides: Shape) -> tuple[slice, ...]:
    return tuple(map(slice, sides))


def _last_axis_split(values: Float64) -> Float64:
    """One level along the last axis, which becomes the first one."""
    lines = np.moveaxis(values, -1, 0)
    s, d = lines[::2].copy(), lines[1::2].copy()
    for predict, update in zip(PREDICT, UPDATE, strict=True):
        d += predict * _of_even(s, len(d))
        s += update * _of_odd(d, len(s))
    s *= GAIN
    d *= INVERSE_GAIN
    return np.concatenate([s, d])


def _first_axis_joined(bands: Float64) -> Float64:
    """What `_last_axis_split` was given: the first axis becomes the last one."""
    middle = (len(bands) + 1) // 2
    s, d = bands[:middle] * INVERSE_GAIN, bands[middle:] * GAIN
    for predict, update in zip(reversed(PREDICT), reversed(UPDATE), strict=True):
        s -= update * _of_odd(d, len(s))
        d -= predict * _of_even(s, len(d))
    values = np.empty((*bands.shape[1:], len(bands)))
    lines = np.moveaxis(values, -1, 0)
    lines[::2], lines[1::2] = s, d
    return values


def _of_even(s: Float64, count: int) -> Float64:
    """Sums of the even places before and after each odd one."""
    sums = np.empty((count, *s.shape[1:]))
    np.add(s[:-1], s[1:], out=sums[: len(s) - 1])
    if count == len(s):
        np.add(s[-1], s[-1], out=sums[-1])
    return sums


def _of_odd(d: Float64, count: int) -> Float64:
    """Sums of the odd places before and after each even one."""
    sums = np.empty((count, *d.shape[1:]))
    np.add(d[0], d[0], out=sums[0])
    np.add(d[:-1], d[1:], out=sums[1 : len(d)])
    if count > len(d):
        np.add(d[-1], d[-1], out=sums[-1])
    return sums
