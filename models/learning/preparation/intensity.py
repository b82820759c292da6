"""One scale of intensities: (value - centre) / scale, clipped to [-clip, clip], whatever the scan.

Where a scan is constant, or lies at the centre everywhere, all of it is 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
from jaxtyping import Float32, Float64

from models.errors import NonFiniteSample
from models.intensities import IntensityStatistics
from models.learning.preparation.views import Sides, View
from models.types import Array, CubeSource, Int64

SAMPLED_BOXES = 8
"""Strata per axis that a scan is sampled in: a box of `SAMPLED_SIDE`^3 voxels in each, 4,096 voxels."""
SAMPLED_SIDE = 2
FEWEST = 32
"""Sampled voxels of the foreground that quantiles need."""
MOST_DIVISIONS = 64


@dataclass(frozen=True)
class Scale:
    """(value - centre) / scale, clipped; zero where `scale` is zero. `how` says where it comes from."""

    centre: float
    scale: float
    clip: float
    how: str

    @property
    def value_range(self) -> tuple[float, float]:
        """No value is below the first or above the second."""
        return -float(np.float32(self.clip)), float(np.float32(self.clip))

    def of(self, values: Array) -> Float32[Array, "..."]:
        """Scaled values, in float64 until they are clipped."""
        if self.scale == 0:
            return np.zeros(values.shape, np.float32)
        scaled = values.astype(np.float64, order="C")
        scaled -= self.centre
        scaled /= self.scale
        low, high = self.value_range
        np.clip(scaled, low, high, out=scaled)
        return scaled.astype(np.float32)

    def to_json(self) -> dict[str, float | str]:
        """As plain JSON."""
        return asdict(self)


class Scaled(View):
    """A volume's scaled intensities; outside of it is what its minimum becomes.

    Raises NonFiniteSample, naming the voxel as the scan stores it.
    """

    def __init__(self, source: CubeSource, scale: Scale, minimum: float) -> None:
        background = float(scale.of(np.array(minimum)))
        super().__init__(
            source.shape, source.channels, np.zeros(3, np.int64), np.array(source.shape), background
        )
        self._source, self._scale, self.background = source, scale, background

    def _made(self, origins: Int64, sides: Sides) -> Float32[Array, "n c z y x"]:
        boxes = self._source.cubes(origins, sides)
        _refuse_non_finite(boxes, origins)
        return self._scale.of(boxes)


def standard_scale(statistics: IntensityStatistics, clip: float) -> Scale:
    """Mean and standard deviation of the whole scan."""
    return Scale(statistics.mean, statistics.std, clip, "standard" if statistics.std else "constant")


def cohort_scale(statistics: list[IntensityStatistics], clip: float) -> Scale:
    """Mean and standard deviation of all scans together, each with the same weight."""
    means, stds = (np.array([getattr(each, name) for each in statistics]) for name in ("mean", "std"))
    centre = means.mean()
    scale = np.hypot(np.sqrt(np.square(stds).mean()), means.std())
    return Scale(float(centre), float(scale), clip, "cohort")


def robust_scale(source: CubeSource, statistics: IntensityStatistics, clip: float, seed: int) -> Scale:
    """Median and half of the range from the 5th to the 95th percentile, of a sample of the foreground.

    The foreground is what lies above `divide`: air and empty borders, of which scans have more or less, stay
    out of it. Where it is too small or of one value, the scale is the standard one: `how` says so.
    """
    sampled = _sample(source, seed)
    foreground = sampled[sampled > divide(sampled)]
    if len(foreground) >= FEWEST:
        low, centre, high = np.quantile(foreground, [0.05, 0.5, 0.95]).tolist()
        if high > low:
            return Scale(centre, (high - low) / 2, clip, "robust")
    return standard_scale(statistics, clip)


def divide(values: Float64[Array, " m"]) -> float:
    """The value half-way between the means of those below and of those above it.

    Ridler & Calvard, Picture thresholding using an iterative selection method, 1978; of values clipped to
    their 1st and 99th percentiles. All are on one side where those are equal.
    """
    low, high = (float(limit) for limit in np.quantile(values, [0.01, 0.99]))
    clipped = np.clip(values, low, high)
    border, before = (low + high) / 2, math.nan
    for _ in range(MOST_DIVISIONS):
        above = clipped > border
        if border == before or above.all() or not above.any():
            break
        border, before = float(clipped[above].mean() + clipped[~above].mean()) / 2, border
    return border


def _sample(source: CubeSource, seed: int) -> Float64[Array, " m"]:
    """Values in small boxes, one drawn in each of 8^3 blocks: as many chunks, however large a scan is."""
    generator = np.random.default_rng(seed)
    sides = tuple(min(SAMPLED_SIDE, size) for size in source.shape)
    axes = []
    for size, side in zip(source.shape, sides, strict=True):
        edges = np.arange(min(SAMPLED_BOXES, size // side) + 1) * size // min(SAMPLED_BOXES, size // side)
        axes.append(list(zip(edges[:-1].tolist(), (edges[1:] - side).tolist(), strict=True)))
    blocks = np.array(list(product(*axes)))
    origins = generator.integers(blocks[:, :, 0], blocks[:, :, 1], endpoint=True)
    boxes = source.cubes(origins, sides)  # type: ignore[arg-type]
    _refuse_non_finite(boxes, origins)
    return boxes.astype(np.float64).ravel()


def _refuse_non_finite(boxes: Array, origins: Int64) -> None:
    if boxes.dtype.kind == "f" and not (finite := np.isfinite(boxes)).all():
        n, c, *offset = np.unravel_index(int(np.argmin(finite)), boxes.shape)
        voxel = (origins[n] + np.array(offset)).tolist()
        raise NonFiniteSample(tuple(voxel), float(boxes[(n, c, *offset)]))
