"""Small records that the suite needs again and again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.catalogue import Catalogue
from storage.grid import VoxelGrid
from storage.ids import new_id
from storage.jobs import Job, JobKind, Queue
from storage.records import Received, Statistics, StoredVolume, VolumeRecord

KIND = JobKind(
    name="measure",
    version="1",
    title="Measure",
    description="Measures.",
    queue=Queue.BATCH,
    parameters_schema={"type": "object", "properties": {"radius": {"type": "number"}}},
    result_schema={"type": "object"},
)
ERROR: dict[str, Any] = {"code": "invalid-scan", "detail": "the header is damaged", "retryable": False}
TRANSIENT: dict[str, Any] = {"code": "storage-full", "detail": "the disk is full", "retryable": True}

AFFINE = ((0.1, 0.0, 0.0, -1 / 3), (0.0, 0.2, 0.0, 1e-17), (0.0, 0.0, 0.3, 2.0), (0.0, 0.0, 0.0, 1.0))
STORED = StoredVolume(
    grid=VoxelGrid((4, 5, 6), (0.3, 0.2, 0.1), AFFINE),
    axes=("z", "y", "x"),
    array_shape=(4, 5, 6),
    dtype="int16",
    levels=1,
    digest="0" * 64,
    statistics=Statistics(minimum=-1.0, maximum=1.0, mean=0.1, std=0.5),
    stored_bytes=1000,
    source_format="nifti",
    warnings=("a warning",),
    metadata={"modality": "MR"},
)


def announce(catalogue: Catalogue, *names: str) -> None:
    """A worker that can do `names` (default: `measure`)."""
    catalogue.announce("worker-1", [replace(KIND, name=name) for name in names or ("measure",)], "cpu")


def upload(catalogue: Catalogue, name: str = "scan.nii.gz") -> tuple[VolumeRecord, Job]:
    """A volume that is still validating, and its ingest job."""
    received = Received(new_id("vol"), Path("uploads/x"), 1234, "f" * 64)
    return catalogue.create_volume(received, name=name, scan_format="nifti")


def ready_volume(catalogue: Catalogue) -> VolumeRecord:
    """A volume whose ingest has succeeded."""
    volume, job = upload(catalogue)
    catalogue.claim(job.id, "worker-1", 30)
    catalogue.finish(job.id, 1, {}, volume=STORED, store=f"volumes/{volume.id}/1.zarr")
    return catalogue.volume(volume.id)


def queued(catalogue: Catalogue) -> Job:
    """A job that may be claimed."""
    announce(catalogue)
    return catalogue.submit("measure", {"radius": 2.5})


def running(catalogue: Catalogue, lease_s: float = 30.0) -> Job:
    """A job that `worker-1` owns, in its first attempt."""
    job = catalogue.claim(queued(catalogue).id, "worker-1", lease_s)
    assert job is not None
    return job
