"""Scans before and after preparation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from models.errors import InvalidShape
from models.intensities import IntensityStatistics
from models.learning.preparation.grid import Axis
from models.learning.preparation.intensity import Scale
from models.learning.preparation.orientation import Orientation
from models.learning.preparation.views import Sides
from models.types import Array, CubeSource, Int64, Size

Spacing = tuple[float, float, float]
"""Of voxels in mm, (z, y, x)."""
MOST_RESAMPLED = 16
"""Voxels are made larger or smaller along an axis by this factor at most."""


class Caveat(NamedTuple):
    """Something unusual about a scan: a stable code, and what it means for it."""

    code: str
    text: str


@dataclass(frozen=True, eq=False)
class RawScan:
    """A scan as it is stored, with what is known of it.

    `spacing` is in mm, (z, y, x) as stored; without it, it is what the affine says. `affine` (4, 4) maps
    (i, j, k) = (x, y, z) to RAS+ mm. None where the scan does not say. `replaced` counts voxels that were not
    finite, and have the minimum instead; `name` is for messages. Raises InvalidShape for others.
    """

    source: CubeSource
    statistics: IntensityStatistics
    spacing: Spacing | None = None
    affine: Float64[Array, "4 4"] | None = None
    modality: str | None = None
    replaced: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.affine is not None and not _is_affine(np.asarray(self.affine, np.float64)):
            raise InvalidShape("the scan's affine is not a finite, regular 4x4 matrix: give none instead")
        if self.spacing is not None and not all(0 < size < math.inf for size in self.spacing):
            raise InvalidShape(f"the scan's spacing, {self.spacing} mm, must be finite and above 0")

    @property
    def stored_spacing(self) -> Spacing | None:
        """(z, y, x) in mm, as stored."""
        if self.spacing is not None or self.affine is None:
            return self.spacing
        x, y, z = np.linalg.norm(np.asarray(self.affine, np.float64)[:3, :3], axis=0).tolist()
        return z, y, x


@dataclass(frozen=True)
class Places:
    """Where a prepared scan's voxels are in the scan as it is stored; `axes` are the oriented scan's."""

    orientation: Orientation
    axes: tuple[Axis, ...]

    def stored(self, voxels: Int64) -> Float64[Array, "m 3"]:
        """The stored scan's voxel coordinates (z, y, x), with fractions, of voxels (m, 3).

        Those of padding are outside of the scan.
        """
        placed = [axis.positions(voxels[:, number]) for number, axis in enumerate(self.axes)]
        z, y, x = (axis.inputs for axis in self.axes)
        return self.orientation.stored(np.stack(placed, axis=1), (z, y, x))

    def sides(self, sides: tuple[float, float, float]) -> Float64[Array, " 3"]:
        """The sides of a box, (z, y, x), in voxels of the stored scan."""
        steps = np.array([axis.step for axis in self.axes])
        return np.asarray((steps * sides)[np.argsort(self.orientation.axes)])


class PreparedScan:
    """A scan on the training's grid and scale: a `CubeSource` of float32 within `value_range`.

    What lies outside of the scan, and outside of the grid, is `background`: what the scan's minimum becomes.
    `scale` is how its intensities were brought to that, `warnings` what is unusual about it.
    """

    def __init__(
        self,
        volume: CubeSource,
        scale: Scale,
        background: float,
        places: Places,
        warnings: tuple[Caveat, ...],
    ) -> None:
        self._volume = volume
        self.scale, self.background, self.places, self.warnings = scale, background, places, warnings

    @property
    def shape(self) -> Sides:
        """(z, y, x)."""
        return self._volume.shape

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return self._volume.channels

    @property
    def value_range(self) -> tuple[float, float]:
        """No value is below the first or above the second."""
        return self.scale.value_range

    @property
    def statistics(self) -> IntensityStatistics:
        """For encoders that standardise: those by which prepared values stay as they are."""
        return IntensityStatistics(*self.value_range, mean=0.0, std=1.0)

    def cubes(self, origins: Int64, size: Size) -> Float32[Array, "n c z y x"]:
        """See `CubeSource`."""
        return self._volume.cubes(origins, size)


@dataclass(frozen=True)
class Placed:
    """A scan's geometry after orientation."""

    orientation: Orientation
    shape: Sides
    spacing: Spacing | None
    name: str

    @classmethod
    def of(cls, scan: RawScan, *, canonical: bool) -> Placed:
        """Oriented where it is wanted and the scan says how it lies."""
        oriented = canonical and scan.affine is not None
        orientation = Orientation.of(np.asarray(scan.affine, np.float64)) if oriented else Orientation()
        spacing = scan.stored_spacing
        return cls(
            orientation,
            orientation.arranged(scan.source.shape),
            None if spacing is None else orientation.arranged(spacing),
            scan.name or "the scan",
        )

    def steps(self, spacing: Spacing) -> Spacing:
        """From a voxel of `spacing` to the next, in voxels of this scan.

        Raises InvalidShape for a scan without a spacing, or with one that is hardly in the same unit.
        """
        if self.spacing is None:
            raise InvalidShape(
                f"{self.name} has no spacing, and cannot be resampled to one: give it, or choose the grid "
                "pad, or a shape alone to stretch scans to"
            )
        z, y, x = (wanted / own for wanted, own in zip(spacing, self.spacing, strict=True))
        if not all(1 / MOST_RESAMPLED <= step <= MOST_RESAMPLED for step in (z, y, x)):
            raise InvalidShape(
                f"{self.name} has voxels of {in_mm(self.spacing)} (z, y, x), and would be resampled to "
                f"{in_mm(spacing)}, by more than a factor of {MOST_RESAMPLED}: is the unit right? Correct "
                "the spacing in its header, or leave the scan out"
            )
        return z, y, x


def in_mm(spacing: Spacing) -> str:
    """In words."""
    return " x ".join(f"{size:.4g}" for size in spacing) + " mm"


def triple(values: Float64[Array, " 3"]) -> Spacing:
    """Three numbers as plain ones."""
    z, y, x = values.tolist()
    return z, y, x


def _is_affine(matrix: Float64[Array, "..."]) -> bool:
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(sizes.min() > 0 and abs(np.linalg.det(matrix[:3, :3])) > 1e-6 * np.prod(sizes))
