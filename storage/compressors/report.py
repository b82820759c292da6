"""How well values came back: ratio, PSNR, SSIM and the largest error, all of what was decoded.

    PSNR = 10 log10(peak^2 / mean squared error), peak = maximum - minimum of the source, unless it is given

SSIM is Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Trans. Image Processing 13 (2004): 11 x 11 Gaussian windows of deviation 1.5 that lie within
the slice, K_1 = 0.01, K_2 = 0.03, L = peak; the mean over windows, then over slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import spread
from storage.compressors.frame import Array

TAPS, DEVIATION = 11, 1.5
K1, K2 = 0.01, 0.03

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """Of a compressed volume. `peak` and `max_error` are in units of the values; `psnr` is in dB, infinite
    where nothing changed.
    """

    source_bytes: int
    stored_bytes: int
    peak: float
    psnr: float
    max_error: float
    ssim: float | None = None

    @property
    def ratio(self) -> float:
        """Source bytes for each stored byte."""
        return self.source_bytes / self.stored_bytes


def reported(
    values: Array, told: Array, stored_bytes: int, *, peak: float | None = None, with_ssim: bool = True
) -> Report:
    """What became of values (z, y, x) or (t, z, y, x); `told` is what their compressed bytes decode to. The
    `peak` is their range unless it is given. Raises ValueError where shapes or dtypes differ.
    """
    if values.shape != told.shape or values.dtype != told.dtype:
        raise ValueError(f"{values.dtype}{values.shape} came back as {told.dtype}{told.shape}")
    peak = spread(values) if peak is None else peak
    unit = unit_of(peak)
    squares, largest = 0.0, 0.0
    for own, other in zip(values, told, strict=True):
        errors = _errors(own, other)
        squares += squared(errors, unit)
        largest = max(largest, float(errors.max()))
    return Report(
        source_bytes=values.nbytes,
        stored_bytes=stored_bytes,
        peak=peak,
        psnr=psnr_of(squares / values.size, peak / unit),
        max_error=largest,
        ssim=ssim(values, told, peak) if with_ssim else None,
    )


def unit_of(peak: float) -> float:
    """In which errors are squared, so that no square that counts is too large or too small for a float64:
    the peak, if there is one.
    """
    return peak if peak > 0 else 1.0


def squared(errors: Float64, unit: float) -> float:
    """The sum of squares of errors, in squared units."""
    with np.errstate(over="ignore"):
        return float(np.square(errors / unit).sum())


def psnr_of(mean_square: float, peak: float) -> float:
    """In dB, both in the same units; infinite where nothing changed."""
    if mean_square == 0:
        return float("inf")
    return float(20 * np.log10(peak) - 10 * np.log10(mean_square)) if peak > 0 else float("-inf")


def _errors(values: Array, told: Array) -> Float64:
    """Absolute ones; 0 where the same value came back, NaN too, and infinite where a gap opened or closed."""
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(values.astype(np.float64) - told.astype(np.float64))
    if values.dtype.kind == "f":
        same = (values == told) | (np.isnan(values) & np.isnan(told))
        errors = np.where(same, 0.0, np.where(np.isnan(errors), np.inf, errors))
    return errors


def ssim(values: Array, told: Array, peak: float) -> float:
    """The mean over slices (y, x); NaN where values are, 1 for what is constant and the same."""
    slices = values.reshape(-1, *values.shape[-2:])
    others = told.reshape(slices.shape)
    return float(np.mean([_slice_ssim(a, b, peak) for a, b in zip(slices, others, strict=True)]))


def _slice_ssim(values: Array, told: Array, peak: float) -> float:
    return float(ssim_map(values, told, peak).mean())


def ssim_map(values: Array, told: Array, peak: float) -> Float64:
    """The index at each window of a slice (y, x): a map smaller by the window's sides less one."""
    unit = unit_of(peak)
    x, y = values.astype(np.float64) / unit, told.astype(np.float64) / unit
    c1, c2 = (K1 * peak / unit) ** 2, (K2 * peak / unit) ** 2
    mx, my = _windowed(x), _windowed(y)
    vx, vy = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my
    cov = _windowed(x * y) - mx * my
    below = (mx * mx + my * my + c1) * (vx + vy + c2)
    above = (2 * mx * my + c1) * (2 * cov + c2)
    return np.divide(above, below, out=np.ones_like(below), where=below != 0)


def _windowed(values: Float64) -> Float64:
    """Gaussian means in windows within the slice; windows are narrower where a side is."""
    for axis in (0, 1):
        side = values.shape[axis]
        taps = min(TAPS, side - 1 + side % 2)
        places = np.arange(taps) - taps // 2
        weights = np.exp(-0.5 * np.square(places / DEVIATION))
        weights /= weights.sum()
        windows = np.lib.stride_tricks.sliding_window_view(values, taps, axis=axis)
        values = np.asarray(windows @ weights)
    return values
