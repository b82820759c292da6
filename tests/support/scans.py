"""A synthetic scan, and its way into the catalogue."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np

from storage.catalogue import Catalogue
from storage.ids import new_id
from storage.jobs import Job
from storage.records import VolumeRecord
from storage.uploads import Upload

SMALL = (96, 128, 112)


def nifti(shape: tuple[int, int, int] = SMALL) -> bytes:
    """A `.nii.gz` of (x, y, z) voxels of 1 x 1 x 1.5 mm: a smooth body with ripples and some noise."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    body = 1000 * np.exp(-3 * (x**2 + y**2 + z**2)) + 50 * np.sin(20 * x * y) * np.cos(15 * z)
    noise = np.random.default_rng(0).normal(0, 3, shape)
    image = nibabel.Nifti1Image((body + noise).astype(np.int16), np.diag([1, 1, 1.5, 1]))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def upload(catalogue: Catalogue, data_root: Path, content: bytes) -> tuple[VolumeRecord, Job]:
    """What the service does with a request body."""
    arriving = Upload(data_root / "uploads", new_id("vol"), 1 << 30)
    arriving.write(content)
    return catalogue.create_volume(arriving.finish(), name="scan.nii.gz", scan_format="nifti")


def files_below(folder: Path, pattern: str = "*") -> list[str]:
    """Relative paths, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
