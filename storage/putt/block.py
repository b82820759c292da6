"""A block of voxels as bytes that are complete in themselves: what is left to know is its shape and dtype.

The first byte says what follows:

    0  constant    the value, float64
    1  train       step and offset, float64 each, and the coded train
    2  as it is    the values, packed without loss: where they are not all finite, where a train takes more,
                   and where numbers are too large or too fine for one

All numbers are little-endian. Integers are rounded to the nearest when they are read; all values are kept
within their dtype. Voxels, a part, and a coarser level of a train are made from the train itself, for who
holds the bytes of a tile. What reads volumes decodes whole tiles (ADR 13 says why).
"""

from __future__ import annotations

import struct
from math import isfinite, prod, sqrt
from typing import Any

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from storage.putt.coder import decoded, encoded
from storage.putt.digits import Digits, Shape
from storage.putt.factorising import factorised
from storage.putt.integer_train import IntegerTrain

Array = NDArray[Any]
Dtype = np.dtype[Any]

CONSTANT, TRAIN, AS_IT_IS = 0, 1, 2
NUMBERS = struct.Struct("<dd")
NUMBER = struct.Struct("<d")
LOSSLESS = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
PACKED = struct.Struct("<4xIII")
"""Blosc's header: values' bytes, a block's, and the bytes of all that was packed, after four of flags."""
LARGEST = 1e100
"""Squares of numbers are summed."""
FINEST = 2.0**27
"""Of steps in a block's norm. The sums of a train's last product are 2^25 times as large at most, so that
they stay below 2^53, with a bit to spare for rows that rounding has left not quite orthogonal.
"""
LEAST_PART = 2
"""Levels of the sub-blocks that a part is made of: 4^3 voxels."""


def block_bytes(values: Array, step: float) -> bytes:
    """A block (z, y, x), as a train for a step unless something else is smaller. Raises ValueError for a bad
    step.
    """
    if (constant := _constant(values)) is not None:
        return bytes([CONSTANT]) + NUMBER.pack(constant)
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    plain = bytes([AS_IT_IS]) + bytes(LOSSLESS.encode(little))
    exact = values.astype(np.float64)
    if not _fit_for_a_train(exact, step):
        return plain
    train = factorised(Digits.of(values.shape).split(exact), step)
    coded = bytes([TRAIN]) + NUMBERS.pack(train.step, train.offset) + encoded(train)
    return min(coded, plain, key=len)


def _constant(values: Array) -> float | None:
    """The number that all voxels hold, if there is one, it is finite and a float64 holds it."""
    if not values.size or not (values == values.flat[0]).all():
        return None
    first = values.flat[0].item()
    return float(first) if isfinite(first) and float(first) == first else None


def _fit_for_a_train(values: NDArray[np.float64], step: float) -> bool:
    """Whether they are finite and differ, and no number of a train would be too large."""
    low, high = float(values.min()), float(values.max())
    if not (isfinite(low) and isfinite(high) and max(-low, high) < LARGEST):
        return False
    return not step > 0 or 0 < (high - low) * sqrt(values.size) < FINEST * step


@np.errstate(over="ignore", invalid="ignore")
def block_values(data: bytes, shape: Shape, dtype: Dtype) -> Array:
    """The whole block. Raises ValueError for bytes that are none of such a block."""
    if (train := _train(data, shape)) is not None:
        return np.asarray(Digits.of(shape).joined(_as(train.values(), dtype)))
    return _without_train(data, shape, dtype)


@np.errstate(over="ignore", invalid="ignore")
def block_voxels(data: bytes, shape: Shape, dtype: Dtype, places: NDArray[np.int64]) -> Array:
    """The voxels at m places (z, y, x) within the block, (m, 3): (m,), with the bits that they have in the
    whole; of a train, without making the rest. Raises ValueError as `block_values`.
    """
    train, digits = _train(data, shape), Digits.of(shape)
    if train is None:
        return np.asarray(_without_train(data, shape, dtype)[tuple(places.T)])
    bond = digits.levels - LEAST_PART
    if bond < 1:
        return _as(digits.joined(train.values())[tuple(places.T)], dtype)
    z, y, x = sides = [1 << min(LEAST_PART, bits) for bits in digits.bits]
    counts = [whole // side for whole, side in zip(digits.padded, sides, strict=True)]
    numbers = np.ravel_multi_index(tuple((places // sides).T), counts)
    needed, which = np.unique(numbers, return_inverse=True)
    blocks = np.stack(np.unravel_index(needed, counts), -1)
    told = train.blocks(digits.prefixes(blocks, bond)).reshape(len(needed), -1)
    return _as(told[which, Digits.of((z, y, x)).numbers[tuple((places % sides).T)]], dtype)


def block_part(data: bytes, shape: Shape, dtype: Dtype, part: tuple[slice, slice, slice]) -> Array:
    """The voxels of a part (z, y, x), as `block_voxels`. Slices have starts and stops within the block, and
    no steps.
    """
    axes = [np.arange(axis.start, axis.stop) for axis in part]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return block_voxels(data, shape, dtype, places.reshape(-1, 3)).reshape(places.shape[:3])


@np.errstate(over="ignore", invalid="ignore")
def block_level(data: bytes, shape: Shape, dtype: Dtype, level: int) -> Array:
    """The block 2^level times as coarse along each axis, means of its voxels (z, y, x); of a train, without
    making these. At far faces means are of voxels that are repeated (`digits`).

    Raises ValueError as `block_values`, and for a level at which nothing is left.
    """
    digits = Digits.of(shape)
    if not 0 <= level < digits.levels:
        raise ValueError(
            f"level {level} of a block of {shape}: there are levels from 0 to {digits.levels - 1}"
        )
    kept = digits.levels - level
    if (train := _train(data, shape)) is not None:
        means = train.values(kept)
    else:
        whole = _without_train(data, shape, dtype).astype(np.float64)
        means = digits.split(whole).reshape(*digits.modes[:kept], -1).mean(axis=-1)
    inside = tuple(slice(-(-side >> level)) for side in shape)
    return _as(digits.joined(means, kept)[inside], dtype)


def _train(data: bytes, shape: Shape) -> IntegerTrain | None:
    """The block's train, if it is one."""
    if not data or data[0] != TRAIN:
        return None
    if len(data) < 1 + NUMBERS.size:
        raise ValueError(f"a block of {len(data)} bytes ends before its train")
    step, offset = NUMBERS.unpack_from(data, 1)
    if not (isfinite(offset) and isfinite(step) and step > 0):
        raise ValueError(f"a train of step {step} and offset {offset}: both are finite, a step is above 0")
    return IntegerTrain(decoded(data[1 + NUMBERS.size :], Digits.of(shape).modes), step, offset)


def _without_train(data: bytes, shape: Shape, dtype: Dtype) -> Array:
    if data and data[0] == CONSTANT and len(data) == 1 + NUMBER.size:
        return _as(np.full(shape, *NUMBER.unpack_from(data, 1)), dtype)
    if data and data[0] == AS_IT_IS:
        little = dtype.newbyteorder("<")
        return np.frombuffer(_unpacked(data[1:], prod(shape) * dtype.itemsize), little).reshape(shape)
    raise ValueError(
        f"no block of this version: {len(data)} bytes that begin with {data[:1].hex() or 'none'}"
    )


def _unpacked(data: bytes, count: int) -> bytes:
    """So many bytes. Raises ValueError for others, before there is room for them."""
    told, _, packed = PACKED.unpack_from(data) if len(data) >= PACKED.size else (0, 0, 0)
    if told != count or packed != len(data):
        raise ValueError(
            f"values of {told} bytes in {packed} are announced: there are {len(data)}, for a block of {count}"
        )
    try:
        return bytes(LOSSLESS.decode(data))
    except RuntimeError as error:
        raise ValueError(f"the block's values cannot be unpacked: {error}") from error


def _as(values: NDArray[np.float64], dtype: Dtype) -> Array:
    """Kept within the dtype, rounded for an integer one. Raises ValueError where they are not finite."""
    if not np.isfinite(values).all():
        raise ValueError("the block's values are not finite: they are no train's and no constant's")
    if dtype.kind not in "iu":
        return _within(values, dtype)
    limits = np.iinfo(dtype)
    most = float(limits.max)
    return np.clip(np.rint(values), limits.min, most if most == limits.max else np.nextafter(most, 0)).astype(
        dtype
    )


def _within(values: NDArray[np.float64], dtype: Dtype) -> Array:
    """Finite values in a float dtype: its largest number stands for those beyond it."""
    told = values.astype(dtype)
    if told.dtype == values.dtype or np.isfinite(told).all():
        return told
    most = float(np.finfo(dtype).max)
    return np.clip(values, -most, most).astype(dtype)
