"""Real values as the 16 bits of a DICOM pixel: `value = stored * slope + intercept` (PS3.3 C.11.1).

Whole numbers that 16 bits hold are stored as they are. Others are rounded plane by plane: to the steps that
the plane's values have themselves, as those of a scanner that stored whole numbers under a slope, which loses
no more than the last bit of a float; else to 65,536 steps from the plane's smallest value to its largest,
which errs by half a step. Slope and intercept are decimal strings of 16 characters: values are coded by what
those say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.readers.base import Voxels
from storage.records import StoredVolume

MOST = 2**16 - 1
SPANS = (16, 256, 4096, MOST)
"""Steps over which the length of one is estimated, one after the other."""


@dataclass(frozen=True)
class CodedPlane:
    """A plane as it is stored, (rows, columns) of int16 or uint16, and what its values are.

    `error` is the largest difference to the values that were coded.
    """

    stored: Voxels
    slope: float = 1.0
    intercept: float = 0.0
    error: float = 0.0


def direct_dtype(volume: StoredVolume) -> np.dtype[np.int16] | np.dtype[np.uint16] | None:
    """The type of 16 bits that holds every value of a volume as it is; None where none does."""
    dtype, values = np.dtype(volume.dtype), volume.statistics
    if dtype.kind not in "iub":
        return None
    signed, unsigned = np.dtype(np.int16), np.dtype(np.uint16)
    for candidate in (signed, unsigned) if dtype.kind == "i" else (unsigned,):
        limits = np.iinfo(candidate)
        if limits.min <= values.minimum and values.maximum <= limits.max:
            return candidate
    return None


def coded(plane: Voxels, direct: np.dtype[np.int16] | np.dtype[np.uint16] | None) -> CodedPlane:
    """A plane as it is in the type `direct`, or rounded to unsigned numbers where that is None."""
    if direct is not None:
        return CodedPlane(plane.astype(direct))
    levels, places = np.unique(plane, return_inverse=True)
    values = levels.astype(np.float64)
    best = min((_rounded(values, step) for step in _steps(levels, values)), key=lambda each: each.error)
    return CodedPlane(best.stored[places.reshape(plane.shape)], best.slope, best.intercept, best.error)


def _steps(levels: Voxels, values: NDArray[np.float64]) -> Iterator[float]:
    """Lengths of steps to try for ascending values: their own, and that of 65,536 of them."""
    span = float(values[-1] - values[0])
    if span == 0:
        yield 1.0
        return
    if levels.dtype.kind in "iu":
        yield float(np.gcd.reduce(np.diff(levels)))
    else:
        yield _own_step(values)
    yield span / MOST


def _own_step(values: NDArray[np.float64]) -> float:
    """The step of which all differences of ascending values are multiples, if they are of any.

    The smallest difference is about that, as exact as values are; differences of sixteen times as many steps
    make it sixteen times as exact.
    """
    step = float(np.diff(values).min())
    for most in SPANS:
        ends = np.searchsorted(values, values + (most + 0.5) * step) - 1
        spans = values[ends] - values
        step = float(spans.sum() / np.rint(spans / step).sum())
    return step


def _rounded(values: NDArray[np.float64], step: float) -> CodedPlane:
    """Values in steps, the intercept in the middle of what they differ by from whole steps."""
    slope = as_decimal(step) or 1.0
    stored = np.clip(np.rint((values - values[0]) / slope), 0, MOST)
    rest = values - stored * slope
    intercept = as_decimal(float(rest.min() + (rest.max() - rest.min()) / 2))
    error = float(np.abs(stored * slope + intercept - values).max())
    return CodedPlane(stored.astype(np.uint16), slope, intercept, error)


def as_decimal(value: float) -> float:
    """The number that a decimal string of 16 characters can say (PS3.5 6.2, DS)."""
    from pydicom.valuerep import format_number_as_ds  # noqa: PLC0415 - slow to import

    return float(format_number_as_ds(value))
