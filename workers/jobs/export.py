"""`export`: a volume as one file that other programs read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import prod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from storage.exports.nifti import nifti_pieces, nifti_version
from storage.exports.ome_zarr import PLAIN, codecs_of, store_entries
from storage.exports.slabs import plane_bytes, slab_depth
from storage.exports.zips import zip_pieces
from storage.jobs import Artifact
from storage.layout import SAMPLING, VIEWING
from storage.records import StoredVolume
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.memory import BASE_BYTES, peak_bytes

NIFTI, OME_ZARR = "volume.nii.gz", "volume.ome.zarr.zip"
HELD = 3
"""Slabs or shards in memory at once at most: as read, in the file's order of bytes, and as coded."""


class ExportParameters(Parameters):
    """As what."""

    format: Literal["nifti", "ome-zarr"] = Field(
        "nifti", description=f"nifti: {NIFTI}; ome-zarr: {OME_ZARR}, a zip of an OME-Zarr 0.5 store"
    )
    keep_codecs: bool = Field(
        False,
        description="ome-zarr: chunks as they are stored, so that what was compressed stays small; "
        "programs need its codec to read them",
    )

    @field_validator("keep_codecs")
    @classmethod
    def _only_of_zarr(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("format") == "nifti":
            raise ValueError("NIfTI has no chunks that could keep their codecs: ask for ome-zarr")
        return value


class ExportResult(Result):
    """What was written; the bytes are an artifact of the job."""

    format: str
    version: str = Field(description="of NIfTI, or of OME-Zarr")
    artifact: str
    stored_bytes: int = Field(description="of the file")
    sha256: str
    array_shape: list[int]
    dtype: str
    codecs: list[str] = Field(description="of the file's Zarr chunks; none in NIfTI")
    notes: list[str] = Field(description="what the file does not say, or asks of who reads it")
    volume_digest: str
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")


class Export(Kind[ExportParameters]):
    """Streams a volume, plain or compressed, into one file."""

    name = "export"
    version = "1"
    title = "Export"
    description = "Writes a volume, plain or compressed, as a NIfTI file or as a zip of an OME-Zarr store."
    parameters = ExportParameters
    result: ClassVar[type[Result]] = ExportResult

    def memory_bytes(self, context: JobContext, parameters: ExportParameters) -> int:
        """One plane, or one shard, as often as it is held; `run` takes thicker slabs where there is room."""
        stored = context.stored
        if parameters.format == "nifti":
            return BASE_BYTES + HELD * plane_bytes(stored)
        shard = max(prod(SAMPLING.shard), prod(VIEWING.shard)) * np.dtype(stored.dtype).itemsize
        return BASE_BYTES + HELD * shard

    def run(self, context: JobContext, parameters: ExportParameters) -> Outcome:
        """Write the file. Raises CorruptVolume and StorageFull."""
        began = time.perf_counter()
        volume = context.volume()
        write = _nifti if parameters.format == "nifti" else _ome_zarr
        file = write(context, volume, parameters)
        stored, codecs = volume.stored, _codecs(volume, parameters)
        result = ExportResult(
            format=parameters.format,
            version=str(nifti_version(stored)) if parameters.format == "nifti" else "0.5",
            artifact=file.name,
            stored_bytes=file.size,
            sha256=file.sha256,
            array_shape=list(stored.array_shape),
            dtype=stored.dtype,
            codecs=codecs,
            notes=list(_notes(stored, parameters, codecs)),
            volume_digest=stored.digest,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
        )
        return Outcome(result, (file,))


def _nifti(context: JobContext, volume: Volume, parameters: ExportParameters) -> Artifact:
    depth = slab_depth(volume, (context.memory_budget - BASE_BYTES) // HELD)
    pieces = nifti_pieces(volume, depth, context.report)
    return context.artifacts.write_pieces(NIFTI, pieces, "application/gzip")


def _ome_zarr(context: JobContext, volume: Volume, parameters: ExportParameters) -> Artifact:
    entries = store_entries(volume, context.report, coded=parameters.keep_codecs)
    return context.artifacts.write_pieces(OME_ZARR, zip_pieces(entries), "application/zip")


def _codecs(volume: Volume, parameters: ExportParameters) -> list[str]:
    """Those that who reads the file needs."""
    if parameters.format == "nifti":
        return []
    return sorted(codecs_of(volume) if parameters.keep_codecs else PLAIN)


def _notes(stored: StoredVolume, parameters: ExportParameters, codecs: list[str]) -> Iterator[str]:
    if stored.derived is not None:
        yield f"a job ({stored.derived.kind}) made these values from another volume: no scanner measured them"
    if needed := sorted(set(codecs) - PLAIN):
        yield f"programs need the Zarr codec {', '.join(needed)}, which comes with Tomotrain, to read it"
    if stored.grid.spacing is None:
        yield "the size of voxels is unknown"
    elif stored.grid.affine is None and parameters.format == "nifti":
        yield "where the patient lies is unknown: programs that show NIfTI will take axes for directions"
