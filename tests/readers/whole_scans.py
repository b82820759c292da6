"""Helpers of the reader tests: read a scan whole, and small things that they share."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.readers import open_scan
from storage.readers.base import Limits, ScanHeader

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Whole:
    """A scan read to its end: `voxels` is (frames, z, y, x)."""

    header: ScanHeader
    voxels: np.ndarray
    warnings: tuple[str, ...]


def read_whole(path: Path, limits: Limits | None = None, depth: int = 5) -> Whole:
    """All voxels of a scan, after checking what every `Scan` promises of its slabs."""
    with open_scan(path, limits or Limits()) as scan:
        header = scan.header
        frames = header.frames.count if header.frames else 1
        voxels = np.empty((frames, *header.grid.shape), header.dtype)
        expected = [
            (frame, start) for frame in range(frames) for start in range(0, header.grid.shape[0], depth)
        ]
        seen = []
        for slab in scan.slabs(depth):
            assert slab.voxels.dtype == header.dtype
            assert slab.voxels.dtype.isnative
            stop = min(slab.start + depth, header.grid.shape[0])
            assert slab.voxels.shape == (stop - slab.start, *header.grid.shape[1:])
            voxels[slab.frame, slab.start : stop] = slab.voxels
            seen.append((slab.frame, slab.start))
        assert seen == expected
        return Whole(header, voxels, scan.warnings)


def manifest(folder: str) -> list[dict[str, str]]:
    """The rows of `shared/data/<folder>/MANIFEST.tsv`; none where the collection is absent."""
    path = SHARED / folder / "MANIFEST.tsv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def peak_rss_bytes() -> int:
    """The high-water mark of this process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def ramp(shape: tuple[int, ...], dtype: Any = np.int16) -> np.ndarray:
    """Voxels that all differ (as far as the type goes), so that no permutation goes unnoticed."""
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)
