"""What is unusual about a scan, beside those that a preparation was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from models.learning.preparation.grid import Axis
from models.learning.preparation.intensity import Scale
from models.learning.preparation.scans import Caveat, Placed, RawScan, Spacing, in_mm

FAR_SPACING = 1.5
"""Marked are spacings that differ by more than this factor: a scan's from the training's range, and those of
a cohort among themselves.
"""
MUCH_CROPPED = 0.1
"""A scan is marked when a larger share of it is outside of the grid."""


def of_orientation(scan: RawScan) -> list[Caveat]:
    """Where scans are oriented."""
    if scan.affine is not None:
        return []
    text = "the scan does not say how it lies: its axes are taken as they are stored"
    return [Caveat("orientation-unknown", text)]


def of_spacing(placed: Placed, least: Spacing, most: Spacing) -> list[Caveat]:
    """Beside the training's, from `least` to `most`."""
    if placed.spacing is None:
        text = "the scan has no spacing: its voxels may be of another size than the training's"
        return [Caveat("spacing-unknown", text)]
    if all(
        low / FAR_SPACING <= size <= high * FAR_SPACING
        for size, low, high in zip(placed.spacing, least, most, strict=True)
    ):
        return []
    text = f"spacing {in_mm(placed.spacing)}: the training's is from {in_mm(least)} to {in_mm(most)}"
    return [Caveat("spacing-far", text)]


def of_cropping(axes: Sequence[Axis]) -> list[Caveat]:
    """On the grid."""
    lost = 1 - math.prod(min(1.0, axis.outputs / axis.resampled) for axis in axes)
    if lost <= MUCH_CROPPED:
        return []
    grid = " x ".join(str(axis.outputs) for axis in axes)
    return [Caveat("cropped", f"{100 * lost:.0f} % of the scan is outside of the grid of {grid} voxels")]


def of_modality(scan: RawScan, modalities: Sequence[str]) -> list[Caveat]:
    """Beside the training's; nothing where either is not known."""
    if scan.modality is None or not modalities or scan.modality in modalities:
        return []
    return [Caveat("modality-other", f"modality {scan.modality}: the training's is {', '.join(modalities)}")]


def of_replaced(scan: RawScan) -> list[Caveat]:
    """Where voxels were never measured."""
    if not scan.replaced:
        return []
    share = scan.replaced / math.prod((scan.source.channels, *scan.source.shape))
    text = f"{scan.replaced:,} voxels ({100 * share:.2g} %) were NaN or infinite, and have the scan's minimum"
    return [Caveat("voxels-replaced", text)]


def of_intensity(scan: RawScan, scale: Scale, wanted: str) -> list[Caveat]:
    """Where a scan's own intensities do not give the scale that is wanted."""
    if scan.statistics.minimum == scan.statistics.maximum:
        return [Caveat("constant", f"every voxel is {scan.statistics.minimum:g}")]
    if wanted == "robust" and scale.how != "robust":
        text = "too few voxels differ for percentiles: mean and standard deviation are used instead"
        return [Caveat("percentiles-unknown", text)]
    return []
