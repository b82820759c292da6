"""What a cohort's scans are brought to, decided once, from the training scans alone.

What is decided goes into a model's manifest; `Preparation.apply` then takes any scan to it, and says what is
unusual about the scan beside the training's. Scans are looked at lazily, through boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidShape
from models.intensities import IntensityStatistics
from models.learning.preparation import caveats
from models.learning.preparation.config import FEASIBLE, PreparationConfig, is_feasible
from models.learning.preparation.grid import Axis, Regridded, resampled_size
from models.learning.preparation.intensity import (
    Scale,
    Scaled,
    cohort_scale,
    robust_scale,
    standard_scale,
)
from models.learning.preparation.orientation import Oriented
from models.learning.preparation.scans import (
    Caveat,
    Placed,
    Places,
    PreparedScan,
    RawScan,
    Spacing,
    triple,
)
from models.learning.preparation.views import Sides
from models.types import Array, CubeSource

MULTIPLE = 8
"""Shapes that are found are rounded up to a multiple of this."""


@dataclass(frozen=True)
class Preparation:
    """What was decided. Make one with `fit`.

    `shape` is every prepared scan's, `spacing` its voxels' in mm where scans are resampled to one.
    `canonical` says whether scans are oriented. `least_spacing` and `most_spacing` are the training's on each
    axis, after orientation, `modalities` what they were: empty where none said. `scale` is (centre, scale)
    where all scans have one.
    """

    config: PreparationConfig
    shape: Sides
    channels: int
    canonical: bool
    spacing: Spacing | None = None
    least_spacing: Spacing | None = None
    most_spacing: Spacing | None = None
    modalities: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None

    @classmethod
    def fit(cls, config: PreparationConfig, scans: Sequence[RawScan]) -> Preparation:
        """What these training scans are brought to; no voxel is read.

        Scans are oriented where any of them has an affine. Raises InvalidShape, naming the scan: for shapes
        that differ where they are taken as they are, for other numbers of channels, for no known spacing
        where scans are resampled to one or one that is hardly in the same unit, and for a grid that
        is not `FEASIBLE`.
        """
        if not scans:
            raise InvalidShape("there are no scans to prepare")
        scans = [replace(scan, name=scan.name or f"scan {number}") for number, scan in enumerate(scans)]
        first, channels = scans[0].name, scans[0].source.channels
        for scan in scans:
            if scan.source.channels != channels:
                raise InvalidShape(f"{scan.name} has {scan.source.channels} channels, {first} has {channels}")
        canonical = config.orientation == "canonical" and any(scan.affine is not None for scan in scans)
        placed = [Placed.of(scan, canonical=canonical) for scan in scans]
        known = np.array([each.spacing for each in placed if each.spacing is not None]).reshape(-1, 3)
        spacing = _spacing(config, known)
        return cls(
            config,
            _shape(config, placed, spacing),
            channels,
            canonical,
            spacing,
            triple(known.min(axis=0)) if len(known) else None,
            triple(known.max(axis=0)) if len(known) else None,
            tuple(sorted({scan.modality for scan in scans if scan.modality is not None})),
            _fixed(config, [scan.statistics for scan in scans]),
        )

    def apply(self, scan: RawScan, seed: int) -> PreparedScan:
        """A scan on this grid and scale. Same scan and seed: same bits.

        Reads 4,096 voxels now where intensities are robust, and else nothing before it is asked. Raises
        InvalidShape for another number of channels, for another shape where scans are taken as they are, for
        a spacing that is not known or hardly in the same unit where they are resampled to one.
        """
        placed = Placed.of(scan, canonical=self.canonical)
        if scan.source.channels != self.channels:
            raise InvalidShape(
                f"{placed.name} has {scan.source.channels} channels, those of the training have "
                f"{self.channels}"
            )
        axes = self._axes(placed)
        scale = self._scale(scan, seed)
        scaled = Scaled(scan.source, scale, scan.statistics.minimum)
        volume: CubeSource = scaled
        if not placed.orientation.is_identity:
            volume = Oriented(volume, placed.orientation)
        if axes != tuple(Axis(size, size) for size in placed.shape):
            volume = Regridded(volume, axes, scaled.background, scale.value_range)
        places = Places(placed.orientation, axes)
        return PreparedScan(
            volume, scale, scaled.background, places, self._caveats(scan, placed, axes, scale)
        )

    def manifest(self) -> dict[str, Any]:
        """As plain JSON."""
        record = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return {**record, "config": self.config.to_json()}

    @classmethod
    def from_manifest(cls, record: Mapping[str, Any]) -> Preparation:
        """What `manifest` gave. Raises InvalidShape for a record that lacks something, InvalidConfig."""
        known = [field.name for field in fields(cls)]
        if missing := [name for name in known if name not in record]:
            raise InvalidShape(f"the preparation's record lacks {', '.join(missing)}")
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v := record[name], list) else v for name in known
        }
        return cls(**{**values, "config": PreparationConfig.from_json(record["config"])})

    def _axes(self, placed: Placed) -> tuple[Axis, ...]:
        if self.config.grid == "as_is" and placed.shape != self.shape:
            raise InvalidShape(
                f"{placed.name} is {placed.shape}, those of the training are {self.shape}: "
                "train with the grid pad or resample to take scans of any shape"
            )
        return tuple(
            Axis.between(size, wanted, step, average=self.config.average)
            for size, wanted, step in zip(placed.shape, self.shape, self._steps(placed), strict=True)
        )

    def stored_voxels(self, scan: RawScan) -> float:
        """Voxels of a scan that one of the grid's stands for. Raises as `apply` for its spacing."""
        return prod(self._steps(Placed.of(scan, canonical=self.canonical)))

    def _steps(self, placed: Placed) -> Spacing:
        """Input voxels from one output to the next, on each axis."""
        if self.config.grid != "resample":
            return 1.0, 1.0, 1.0
        if self.spacing is None:
            return triple(np.array(placed.shape) / self.shape)
        return placed.steps(self.spacing)

    def _scale(self, scan: RawScan, seed: int) -> Scale:
        clip = self.config.clip
        if self.scale is not None:
            return Scale(*self.scale, clip, "fixed")
        if self.config.intensity == "robust":
            return robust_scale(scan.source, scan.statistics, clip, seed)
        return standard_scale(scan.statistics, clip)

    def _caveats(
        self, scan: RawScan, placed: Placed, axes: Sequence[Axis], scale: Scale
    ) -> tuple[Caveat, ...]:
        spacing: list[Caveat] = []
        if self.least_spacing is not None and self.most_spacing is not None:
            spacing = caveats.of_spacing(placed, self.least_spacing, self.most_spacing)
        return (
            *(caveats.of_orientation(scan) if self.canonical else ()),
            *spacing,
            *caveats.of_cropping(axes),
            *caveats.of_modality(scan, self.modalities),
            *caveats.of_replaced(scan),
            *caveats.of_intensity(scan, scale, self.config.intensity),
        )


def _spacing(config: PreparationConfig, known: Float64[Array, "n 3"]) -> Spacing | None:
    """What scans are resampled to; None where they are not, or are stretched to a shape."""
    if config.grid != "resample" or config.spacing is not None:
        return config.spacing
    if config.shape is not None:
        return None
    if len(known) == 0:
        raise InvalidShape("no scan has a spacing: give a shape to stretch scans to, or choose the grid pad")
    return triple(np.median(known, axis=0))


def _shape(config: PreparationConfig, placed: Sequence[Placed], spacing: Spacing | None) -> Sides:
    steps = [(1.0, 1.0, 1.0) if spacing is None else each.steps(spacing) for each in placed]
    if config.shape is not None:
        return config.shape
    shapes = [each.shape for each in placed]
    if config.grid == "as_is":
        for each in placed:
            if each.shape != shapes[0]:
                raise InvalidShape(
                    f"{each.name} is {each.shape}, {placed[0].name} is {shapes[0]}: choose the grid pad or "
                    "resample"
                )
        return shapes[0]
    if spacing is not None:
        shapes = [
            tuple(resampled_size(size, step) for size, step in zip(each.shape, own, strict=True))  # type: ignore[misc]
            for each, own in zip(placed, steps, strict=True)
        ]
    z, y, x = (-(-max(sizes) // MULTIPLE) * MULTIPLE for sizes in zip(*shapes, strict=True))
    if not is_feasible((z, y, x)):
        raise InvalidShape(
            f"a grid that holds every scan has {z} x {y} x {x} voxels (z, y, x), and may have {FEASIBLE}: "
            "give a shape, or resample to a larger spacing"
        )
    return z, y, x


def _fixed(config: PreparationConfig, statistics: list[IntensityStatistics]) -> tuple[float, float] | None:
    """(centre, scale) of all scans, where they share one."""
    if config.intensity != "fixed":
        return None
    if config.centre is not None and config.scale is not None:
        return config.centre, config.scale
    cohort = cohort_scale(statistics, config.clip)
    return cohort.centre, cohort.scale
