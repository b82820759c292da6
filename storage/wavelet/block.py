"""A block of voxels as bytes that are complete in themselves: what is left to know is its shape and dtype.

The first byte says what follows:

    0  constant    the value, float64                                       } as in `storage.putt.block`
    2  as it is    the values, packed without loss                          }
    3  wavelet     two bytes, little-endian, three bits each from the lowest: levels along z, y and x, and
                   the axis that is put first; step and offset, float64 each; by how many 64ths of a step the
                   magnitudes 1, 2 and those from 3 on are meant to be larger, int8 each; the coded
                   coefficients

Values are the offset and step times the inverse transform of what the coefficients mean. Blocks are kept as
they are where they are not all finite, where coefficients would take more bytes, and where numbers are too
large or too fine for them. Integers are rounded to the nearest when they are read; all values are kept within
their dtype.

The quantiser has a dead zone: q = sign(c) floor(|c| / step + 1 - DEAD). Along an axis of thick slices there
are no levels, as they would only make numbers larger; it is put first. Which axes get levels is tried on the
middle of the block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.putt.block import AS_IT_IS, CONSTANT, LOSSLESS, block_values
from storage.wavelet.bands import Int32
from storage.wavelet.coder import LARGEST, decoded, encoded
from storage.wavelet.lifting import Float64, Shape, Split, most_levels, restored, transformed

Array = NDArray[Any]
Dtype = np.dtype[Any]

WAVELET = 3
NUMBER = struct.Struct("<d")
HEADER = struct.Struct("<BHdd3b")
"""The first byte, levels and axis, step, offset and means."""
BITS = 3
DEAD = 0.66
"""Magnitudes below it, in steps, are 0."""
PARTS = 64
FAR = 1e100
"""Values are below it: squares of coefficients are looked at."""
MIDDLE = 32
"""Of each axis: what levels are tried on."""
BETTER = 0.99
"""What another choice of levels must cost, over that with all."""
PROMISING = 4
"""Blocks that coefficients do not make so many times as small are also tried as they are."""


@dataclass(frozen=True)
class Levels:
    """How a block is transformed: levels along z, y and x, and the axis that is put first."""

    counts: Shape
    first: int = 0

    @property
    def order(self) -> Shape:
        """The axes."""
        before, after = (axis for axis in range(3) if axis != self.first)
        return self.first, before, after

    @property
    def splits(self) -> list[Split]:
        """The axes that each level splits, in this order."""
        z, y, x = (self.counts[axis] for axis in self.order)
        return [(level < z, level < y, level < x) for level in range(max(z, y, x))]


def wavelet_bytes(values: Array, step: float) -> bytes:
    """A block (z, y, x) for a step above 0, unless something else is smaller."""
    if (constant := _constant(values)) is not None:
        return bytes([CONSTANT]) + NUMBER.pack(constant)
    exact = values.astype(np.float64)
    coded = _coded(exact, step) if _fit_for_a_transform(exact, step) else None
    if coded is not None and PROMISING * len(coded) < values.nbytes:
        return coded
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    plain = bytes([AS_IT_IS]) + bytes(LOSSLESS.encode(little))
    return plain if coded is None else min(coded, plain, key=len)


@np.errstate(over="ignore", invalid="ignore")
def wavelet_values(data: bytes, shape: Shape, dtype: Dtype) -> Array:
    """The block. Raises ValueError for bytes that are none of such a block."""
    if not data or data[0] != WAVELET:
        return block_values(data, shape, dtype)
    if len(data) < HEADER.size:
        raise ValueError(f"a block of {len(data)} bytes ends before its coefficients")
    _, packed, step, offset, *means = HEADER.unpack_from(data)
    levels = _unpacked(packed, shape)
    if not (isfinite(offset) and isfinite(step) and step > 0):
        raise ValueError(f"a step of {step} and an offset of {offset}: both are finite, a step is above 0")
    z, y, x = (shape[axis] for axis in levels.order)
    q = decoded(data[HEADER.size :], (z, y, x), levels.splits)
    told = restored(_meant(q, means), levels.splits) * step + offset
    return _as(told.transpose(np.argsort(levels.order)), dtype)


def _constant(values: Array) -> float | None:
    """The number that all voxels hold, if there is one, it is finite and a float64 holds it."""
    if not (values == values.flat[0]).all():
        return None
    first = values.flat[0].item()
    return float(first) if isfinite(first) and float(first) == first else None


def _fit_for_a_transform(values: Float64, step: float) -> bool:
    """Whether they are finite and differ, and no coefficient is too large: none is far above the norm."""
    low, high = float(values.min()), float(values.max())
    if not (isfinite(low) and isfinite(high) and max(-low, high) < FAR):
        return False
    return 0 < 4 * (high - low) * sqrt(values.size) < LARGEST * step


def _coded(values: Float64, step: float) -> bytes:
    offset = float(values.mean())
    levels = _chosen(values, offset, step)
    c = transformed(np.ascontiguousarray(values.transpose(levels.order)) - offset, levels.splits) / step
    magnitudes = np.abs(c)
    whole = np.floor(magnitudes + (1 - DEAD))
    q = np.copysign(whole, c).astype(np.int32)
    header = HEADER.pack(WAVELET, _packed(levels), step, offset, *_means(magnitudes, whole))
    return header + encoded(q, levels.splits)


def _chosen(values: Float64, offset: float, step: float) -> Levels:
    """The levels that promise the fewest bits: all that there may be, unless others are clearly better."""
    z, y, x = values.shape
    starts = [max(0, (side - MIDDLE) // 2) for side in values.shape]
    middle = values[tuple(slice(start, start + MIDDLE) for start in starts)] - offset
    every, *others = _choices((z, y, x))
    bits = [_bits(middle, levels, step) for levels in others]
    least = min(bits, default=inf)
    return others[bits.index(least)] if least < BETTER * _bits(middle, every, step) else every


def _choices(shape: Shape) -> list[Levels]:
    """All levels that there may be, and all but those of one axis, which is put first, or of two."""
    most = [most_levels(side) for side in shape]
    choices = []
    for spared in range(3):
        for axes in combinations((axis for axis in range(3) if most[axis]), spared):
            z, y, x = (0 if axis in axes else most[axis] for axis in range(3))
            choices.append(Levels((z, y, x), next(iter(axes), 0)))
    return choices


def _bits(values: Float64, levels: Levels, step: float) -> float:
    """About what the coefficients of some values take."""
    z, y, x = (min(count, most_levels(side)) for count, side in zip(levels.counts, values.shape, strict=True))
    own = replace(levels, counts=(z, y, x))
    c = transformed(np.ascontiguousarray(values.transpose(own.order)), own.splits) / step
    return float(np.log2(1 + c * c).sum())


def _means(magnitudes: Float64, whole: Float64) -> list[int]:
    """By how much magnitudes exceed the whole numbers 1, 2 and more that stand for them, in PARTS."""
    means = []
    for those in (whole == 1, whole == 2, whole > 2):
        count = np.count_nonzero(those)
        excess = float((magnitudes[those] - whole[those]).sum()) / count if count else 0.0
        means.append(max(-PARTS // 2, min(PARTS // 2, round(PARTS * excess))))
    return means


def _meant(q: Int32, means: list[int]) -> Float64:
    """What integers stand for, in steps."""
    excess = np.array([0, *means]) / PARTS
    magnitudes = np.abs(q)
    return np.copysign(magnitudes + excess[np.minimum(magnitudes, 3)], q)


def _packed(levels: Levels) -> int:
    return sum(number << BITS * place for place, number in enumerate((*levels.counts, levels.first)))


def _unpacked(packed: int, shape: Shape) -> Levels:
    z, y, x, first = (packed >> BITS * place & (1 << BITS) - 1 for place in range(4))
    most = tuple(map(most_levels, shape))
    if z > most[0] or y > most[1] or x > most[2] or first > 2:
        raise ValueError(f"levels {(z, y, x)}, axis {first} first: a block of {shape} has {most} at most")
    return Levels((z, y, x), first)


def _as(values: Float64, dtype: Dtype) -> Array:
    """Kept within the dtype, rounded for an integer one. Raises ValueError where they are not finite."""
    if not np.isfinite(values).all():
        raise ValueError("the block's values are not finite: they are no coefficients'")
    if dtype.kind not in "iu":
        most = float(np.finfo(dtype).max)
        return np.clip(values, -most, most).astype(dtype)
    limits = np.iinfo(dtype)
    most = float(limits.max)
    most = most if most == limits.max else float(np.nextafter(most, 0))
    return np.clip(np.rint(values), limits.min, most).astype(dtype)
