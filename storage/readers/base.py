"""What a reader is: a scan's header at once, its voxels slab by slab, never the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.dicom_uids import SentInstances
from storage.grid import Frames, VoxelGrid

__all__ = ["Frames", "Limits", "Reader", "Scan", "ScanHeader", "Slab", "Voxels"]

Voxels = NDArray[Any]


@dataclass(frozen=True)
class Limits:
    """What a reader may spend on bytes that it does not trust. All in bytes but `members`."""

    decoded_bytes: int = 64 << 30
    """Largest scan, decoded."""
    plane_bytes: int = 512 << 20
    """Largest single plane or foreign Zarr chunk, decoded: what must be in memory at once."""
    planes: int = 1 << 20
    """Most planes of a scan, of all frames together."""
    frames: int = 1 << 16
    """Most time points or channels: each has files of its own in the store."""
    members: int = 200_000
    """Most entries in an archive, and most planes of DICOM, which are all known before the first is read."""
    member_bytes: int = 2 << 30
    """Largest entry of an archive, unpacked."""
    expansion: int = 100
    """An archive's entries unpacked, over the archive, where that is more than `small_bytes`."""
    small_bytes: int = 256 << 20
    """So much may come of any archive: masks are nearly empty."""


@dataclass(frozen=True)
class ScanHeader:
    """All that is known of a scan before its voxels are read.

    `dtype` is that of the values delivered, after rescaling. `metadata` holds only attributes from an
    allow-list (never a patient's name or dates), and no UID but a replaced one; `instances` those of DICOM
    planes.
    """

    format: str
    grid: VoxelGrid
    dtype: np.dtype[Any]
    frames: Frames | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    instances: SentInstances | None = None


class Slab(NamedTuple):
    """Planes `start ... start + len(voxels)` along z of a frame; voxels (d, y, x) of the header's dtype."""

    frame: int
    start: int
    voxels: Voxels


class Scan(Protocol):
    """An opened scan. Close it when done; a context manager."""

    @property
    def header(self) -> ScanHeader:
        """The scan's header."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know, in sentences; complete only after the last slab."""

    def slabs(self, depth: int) -> Iterator[Slab]:
        """Every voxel once, ordered by frame, then z; each slab `depth` planes but the last of a frame.

        Holds no more than a slab in memory. Raises InvalidScan where the bytes break off or do not
        decode; a consumer that has seen no error after the last slab has a sound scan.
        """

    def close(self) -> None:
        """Let go of the files."""

    def __enter__(self) -> Scan:
        """The scan itself."""

    def __exit__(self, *exc: object) -> None:
        """Close."""


class Reader(Protocol):
    """One file format. `READERS` in `storage/readers/__init__.py` lists them in the order of asking."""

    name: str
    accepts: str
    """What of the format is read, for people."""

    def recognises(self, path: Path) -> bool:
        """Whether the content (never the name) is of this format. Reads a few kilobytes at most."""

    def open(self, path: Path, limits: Limits) -> Scan:
        """Read the header, check it against the limits, and return the scan.

        Raises UnsupportedScan, InvalidScan, ScanTooLarge or UnsafeArchive, each naming cause and cure.
        """
