"""The words that the web and the workers share about scans: `VolumeRecord`, `StoredVolume`, `Received`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from storage.grid import VoxelGrid


class VolumeState(StrEnum):
    """Where a volume stands. Only a `ready` one is ever computed on."""

    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    DELETED = "deleted"


@dataclass(frozen=True)
class Received:
    """An upload that has arrived whole: where it lies, its size in bytes and its sha-256."""

    volume_id: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Statistics:
    """Of every voxel of level 0, summed in float64, after the replacement of non-finite voxels."""

    minimum: float
    maximum: float
    mean: float
    std: float
    replaced: int = 0
    """How many NaN or infinite voxels were replaced by the smallest finite value."""

    @property
    def range(self) -> float:
        """The largest value minus the smallest: the peak of a PSNR."""
        return self.maximum - self.minimum


@dataclass(frozen=True)
class Derivation:
    """What a volume that no scanner made was made of: a volume with its digest, by a kind of job with its
    settings.
    """

    volume_id: str
    digest: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredVolume:
    """The facts of a volume, as the catalogue keeps them.

    `axes` names the array's axes (`("z", "y", "x")`, or with a leading `t` or `c`); `digest` is the
    root digest of the chunk manifest; `levels` counts the pyramid's levels; `stored_bytes` is on disk.
    `derived` is None where an upload was ingested; `gaps` says whether its store knows of voxels that were
    never measured (storage/gaps.py).
    """

    grid: VoxelGrid
    axes: tuple[str, ...]
    array_shape: tuple[int, ...]
    dtype: str
    levels: int
    digest: str
    statistics: Statistics
    stored_bytes: int
    source_format: str
    frame_step_s: float | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    derived: Derivation | None = None
    gaps: bool = False

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels of the finest level, of all frames, as they are in memory."""
        return prod(self.array_shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` understands."""
        return {**asdict(self), "grid": self.grid.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> StoredVolume:
        """The facts that `to_json` described."""
        derived = record.get("derived")
        return cls(
            **{
                **record,
                "grid": VoxelGrid.from_json(record["grid"]),
                "statistics": Statistics(**record["statistics"]),
                "axes": tuple(record["axes"]),
                "array_shape": tuple(record["array_shape"]),
                "warnings": tuple(record["warnings"]),
                "derived": None if derived is None else Derivation(**derived),
            }
        )


@dataclass(frozen=True)
class DerivedVolume:
    """A volume that a job made of another one, ready to be published: its name, facts, and path below the
    data root. Its id is `storage.ids.derived_id` of the job's.
    """

    name: str
    stored: StoredVolume
    store: str


@dataclass(frozen=True)
class VolumeRecord:
    """One row of the catalogue's volumes. `store` is the OME-Zarr's path below the data root.

    `stored` and `store` are None until the volume is ready; `error` says why it was rejected or
    quarantined (`{"code", "detail", ...}`). `ingest_job` is the job that made it; for a derived volume
    `source_bytes` are its voxels', and `source_sha256` is its own digest: no upload has it.
    """

    id: str
    name: str
    state: VolumeState
    created_at: float
    source_bytes: int
    source_sha256: str
    ingest_job: str
    stored: StoredVolume | None = None
    store: str | None = None
    error: dict[str, Any] | None = None
    revision: int = 0
    project_id: str = "default"
