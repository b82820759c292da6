"""Scans as volumes are stored here, made beforehand: a body of any size with organs and a scanner's noise.

int16, 1 mm, axes as DICOM has them (left, posterior, superior), written by `storage.ingest`: level 0 in
chunks of 32^3 within shards, sealed by the manifest. Each scan has its own noise and its own proportions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cohorts.counters import bells, generator
from benchmarks.cohorts.made import covered
from benchmarks.out_of_core import intensities
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.readers.base import ScanHeader, Slab

NOISE = 12.0
"""Standard deviation, where a body's intensities go from -1000 to 460."""
BENT_BY = 0.15
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class BodyScan:
    """One scan of (z, y, x) voxels as a reader opens it; fits `storage.readers.base.Scan`."""

    shape: Shape
    seed: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def header(self) -> ScanHeader:
        """Its size, and how it lies."""
        grid = VoxelGrid.from_affine(self.shape, AFFINE)
        return ScanHeader("made", grid, np.dtype("<i2"))

    def slabs(self, depth: int) -> Iterator[Slab]:
        """All planes, `depth` at a time."""
        Z, Y, X = self.shape
        bend = generator(self.seed, "body").uniform(1 - BENT_BY, 1 + BENT_BY, 3)
        z, y, x = (((np.arange(n) + 0.5) / n) ** power for n, power in zip(self.shape, bend, strict=True))
        for start in range(0, Z, depth):
            planes = slice(start, min(start + depth, Z))
            noise = bells(self.seed, covered(np.zeros((1, 3), np.int64), (Z, Y, X), planes))[0]
            body = np.rint(intensities(z[planes], y, x) + np.float32(NOISE) * noise)
            yield Slab(0, start, body.astype("<i2"))

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> BodyScan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make(folder: Path, shape: Shape, seed: int) -> None:
    """A scan, ingested."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with BodyScan(shape, seed) as scan:
        ingest(scan, folder)


def body(shape: Shape, seed: int) -> NDArray[np.int16]:
    """The same voxels, in memory."""
    return np.concatenate([slab.voxels for slab in BodyScan(shape, seed).slabs(shape[0])])
