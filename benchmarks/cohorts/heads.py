"""Heads that made cohorts are built on: real ones, and phantoms for where those are not at hand.

The real ones are the 33 of IXI's T1 scans at 2 mm with the DLMUSE segmentation of their brains (MUSE codes:
81 to 88 the lobes' white matter; 4 and 49 to 52 the ventricles). A head is cut to the box around its brain
and divided by the median of its white matter: the intensity scale says the age there.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from benchmarks.cohorts.counters import generator
from benchmarks.fields import DATA
from models.types import Array

HEADS = "dev/cohort_ixi_age"
WHITE_MATTER = tuple(range(81, 89))
VENTRICLES = (4, 49, 50, 51, 52)
PHANTOM_SHAPE, PHANTOM_SPACING = (72, 88, 72), (2.0, 2.0, 2.0)


@dataclass(frozen=True, eq=False)
class Head:
    """One person's head: axes (z, y, x) grow to superior, anterior and right; `spacing` in mm.

    `t1` is 1 at the median of the white matter.
    """

    name: str
    t1: Float32[Array, "Z Y X"]
    brain: Bool[Array, "Z Y X"]
    white_matter: Bool[Array, "Z Y X"]
    ventricles: Bool[Array, "Z Y X"]
    spacing: tuple[float, float, float]


def base_heads() -> tuple[Head, ...]:
    """The real heads, or as many phantoms where they are not at hand."""
    return real_heads() if (DATA / HEADS).is_dir() else phantom_heads(33)


@cache
def real_heads(folder: Path | None = None) -> tuple[Head, ...]:
    """All heads of the folder's `labels.tsv`, in its order. Raises FileNotFoundError, naming the folder."""
    folder = folder or DATA / HEADS
    if not (folder / "labels.tsv").is_file():
        raise FileNotFoundError(f"{HEADS}/labels.tsv is not under TOMOTRAIN_DATA or ../shared/data")
    with (folder / "labels.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return tuple(
        _real_head(row["subject"], folder / row["file"], folder / row["segmentation"]) for row in rows
    )


def _real_head(name: str, scan: Path, segmentation: Path) -> Head:
    import nibabel

    image, regions = (nibabel.as_closest_canonical(nibabel.load(path)) for path in (scan, segmentation))
    t1 = np.asarray(image.dataobj, np.float32).T
    codes = np.asarray(regions.dataobj).astype(np.int16).T
    x, y, z = (float(size) for size in image.header.get_zooms()[:3])
    return cut(name, t1, codes > 0, np.isin(codes, WHITE_MATTER), np.isin(codes, VENTRICLES), (z, y, x))


def cut(
    name: str,
    t1: Array,
    brain: Array,
    white_matter: Array,
    ventricles: Array,
    spacing: tuple[float, float, float],
) -> Head:
    """The head within the box around its brain, divided by the median of its white matter."""
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(brain))
    scaled = np.ascontiguousarray(t1[box] / np.median(t1[white_matter]), np.float32)
    return Head(name, scaled, brain[box].copy(), white_matter[box].copy(), ventricles[box].copy(), spacing)


@cache
def phantom_heads(count: int, seed: int = 0) -> tuple[Head, ...]:
    """Ellipsoids, each person's own: a skull, grey matter around white, two ventricles, a smooth bias."""
    return tuple(_phantom(f"phantom-{number:02d}", seed, number) for number in range(count))


def _phantom(name: str, seed: int, number: int) -> Head:
    draw = generator(seed, "phantom", number)
    axes = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in PHANTOM_SHAPE), indexing="ij", sparse=True
    )

    def ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> Bool[Array, "Z Y X"]:
        size = np.asarray(radii) * draw.uniform(0.92, 1.08, 3)
        parts = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, size, strict=True)]
        return np.asarray(sum(parts) < 1)

    skull, brain = ellipsoid((0, 0, 0), (0.98, 0.98, 0.98)), ellipsoid((0, 0, 0), (0.84, 0.86, 0.84))
    white = brain & ellipsoid((0.05, 0, 0), (0.66, 0.7, 0.66))
    left, right = (ellipsoid((0.05, -0.05, side * 0.16), (0.2, 0.34, 0.09)) for side in (-1, 1))
    ventricles = brain & (left | right)
    white &= ~ventricles
    t1 = np.select([ventricles, white, brain, skull], [0.3, 1.0, 0.7, 0.45], 0.02)
    bend = draw.normal(0, 0.05, 3)
    t1 = t1 * (1 + sum(axis * slope for axis, slope in zip(axes, bend, strict=True)))
    return cut(name, t1, brain, white, ventricles, PHANTOM_SPACING)
