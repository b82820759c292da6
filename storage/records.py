"""The words that the web and the workers share about scans: `VolumeRecord`, `StoredVolume`, `Received`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from storage.grid import VoxelGrid


class VolumeState(StrEnum):
    """Where a volume stands. Only a `ready` one is ever computed on."""

    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"


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


@dataclass(frozen=True)
class StoredVolume:
    """The facts of an ingested volume, as the catalogue keeps them.

    `axes` names the array's axes (`("z", "y", "x")`, or with a leading `t` or `c`); `digest` is the
    root digest of the chunk manifest; `levels` counts the pyramid's levels; `stored_bytes` is on disk.
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

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` understands."""
        return {**asdict(self), "grid": self.grid.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> StoredVolume:
        """The facts that `to_json` described."""
        return cls(
            **{
                **record,
                "grid": VoxelGrid.from_json(record["grid"]),
                "statistics": Statistics(**record["statistics"]),
                "axes": tuple(record["axes"]),
                "array_shape": tuple(record["array_shape"]),
                "warnings": tuple(record["warnings"]),
            }
        )


@dataclass(frozen=True)
class VolumeRecord:
    """One row of the catalogue's volumes. `store` is the OME-Zarr's path below the data root.

    `stored` and `store` are None until the volume is ready; `error` says why it was rejected or
    quarantined (`{"code", "detail", ...}`).
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
