"""Stored values to real values: `value = stored * slope + intercept`, and the type that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.readers.base import Voxels

INTEGERS = (np.dtype(np.int16), np.dtype(np.int32))


@dataclass(frozen=True)
class Rescale:
    """A linear map from stored to real values."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def identity(self) -> bool:
        """Whether stored values are real values."""
        return self.slope == 1 and self.intercept == 0

    @property
    def integral(self) -> bool:
        """Whether whole numbers stay whole."""
        return float(self.slope).is_integer() and float(self.intercept).is_integer()

    def apply(self, stored: Voxels, dtype: np.dtype[Any]) -> Voxels:
        """Real values of `dtype`, computed in float64 (in int64 where the map and the type are whole)."""
        if self.identity:
            return stored.astype(dtype, copy=False)
        if dtype.kind in "iu":
            return (stored.astype(np.int64) * int(self.slope) + int(self.intercept)).astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            return (stored.astype(np.float64) * self.slope + self.intercept).astype(dtype)


def value_range(dtype: np.dtype[Any], bits: int | None = None) -> tuple[int, int]:
    """Smallest and largest integer that `bits` of an integer `dtype` can hold (all of them by default)."""
    width = dtype.itemsize * 8 if bits is None else min(bits, dtype.itemsize * 8)
    return (-(1 << width - 1), (1 << width - 1) - 1) if dtype.kind == "i" else (0, (1 << width) - 1)


def real_dtype(stored: np.dtype[Any], maps: Iterable[Rescale], bits: int | None = None) -> np.dtype[Any]:
    """The native type of real values of a scan whose planes are rescaled by `maps`.

    Unscaled values keep their type. Integers under one whole slope and intercept become the smallest of
    int16 and int32 that holds all that `bits` can store. Everything else becomes float32 when the stored
    type has at most 16 bits or is float32, else float64.
    """
    native = stored.newbyteorder("=")
    distinct = set(maps)
    if all(each.identity for each in distinct):
        return native
    if native.kind in "iu" and len(distinct) == 1:
        fitting = _integer_dtype(native, distinct.pop(), bits)
        if fitting is not None:
            return fitting
    small = native.itemsize <= 2 or native == np.float32
    return np.dtype(np.float32 if small else np.float64)


def _integer_dtype(stored: np.dtype[Any], rescale: Rescale, bits: int | None) -> np.dtype[Any] | None:
    """The smallest integer type that holds every rescaled value, if the map keeps whole numbers whole."""
    if not rescale.integral or not math.isfinite(rescale.slope):
        return None
    ends = [value * int(rescale.slope) + int(rescale.intercept) for value in value_range(stored, bits)]
    for candidate in INTEGERS:
        low, high = value_range(candidate)
        if low <= min(ends) and max(ends) <= high:
            return candidate
    return None
