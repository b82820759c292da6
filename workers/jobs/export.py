"""`export`: a volume as one file that other programs read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import prod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from storage.exports.dicom import DicomSeries
from storage.exports.dicom_header import SECONDARY
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

NIFTI, OME_ZARR, DICOM = "volume.nii.gz", "volume.ome.zarr.zip", "volume.dicom.zip"
VERSIONS = {"ome-zarr": "0.5", "dicom": "PS3.10, explicit VR little endian"}
HELD = 3
"""Slabs or shards in memory at once at most: as read, in the file's order of bytes, and as coded."""
HELD_AS_DICOM, FLOAT = 8, 8
"""Planes of float64 in memory while one is rounded to 16 bits: as sorted, in steps, and what is left."""
Written = tuple[Artifact, list[str]]
"""A file, and what is to be said of it."""


class ExportParameters(Parameters):
    """As what."""

    format: Literal["nifti", "ome-zarr", "dicom"] = Field(
        "nifti",
        description=f"nifti: {NIFTI}; ome-zarr: {OME_ZARR}, a zip of an OME-Zarr 0.5 store; dicom: {DICOM}, "
        "a zip of one instance for each plane, of 16 bits, without identity",
    )
    keep_codecs: bool = Field(
        False,
        description="ome-zarr: chunks as they are stored, so that what was compressed stays small; "
        "programs need its codec to read them",
    )

    @field_validator("keep_codecs")
    @classmethod
    def _only_of_zarr(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("format") != "ome-zarr":
            raise ValueError("only Zarr has chunks that could keep their codecs: ask for ome-zarr")
        return value


class ExportResult(Result):
    """What was written; the bytes are an artifact of the job."""

    format: str
    version: str = Field(description="of NIfTI, or of OME-Zarr; of DICOM its part and transfer syntax")
    artifact: str
    stored_bytes: int = Field(description="of the file")
    sha256: str
    array_shape: list[int]
    dtype: str
    codecs: list[str] = Field(description="of the file's Zarr chunks; none in others")
    notes: list[str] = Field(description="what the file does not say, or asks of who reads it")
    volume_digest: str
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")


class Export(Kind[ExportParameters]):
    """Streams a volume, plain or compressed, into one file."""

    name = "export"
    version = "1"
    title = "Export"
    description = (
        "Writes a volume, plain or compressed, as a NIfTI file, or as a zip of an OME-Zarr store or of DICOM "
        "instances."
    )
    parameters = ExportParameters
    result: ClassVar[type[Result]] = ExportResult

    def memory_bytes(self, context: JobContext, parameters: ExportParameters) -> int:
        """One plane, or one shard, as often as it is held; `run` takes thicker slabs where there is room."""
        stored = context.stored
        if parameters.format == "nifti":
            return BASE_BYTES + HELD * plane_bytes(stored)
        if parameters.format == "dicom":
            return _needed_by_dicom(stored) + HELD * plane_bytes(stored)
        shard = max(prod(SAMPLING.shard), prod(VIEWING.shard)) * np.dtype(stored.dtype).itemsize
        return BASE_BYTES + HELD * shard

    def run(self, context: JobContext, parameters: ExportParameters) -> Outcome:
        """Write the file. Raises CorruptVolume and StorageFull; of DICOM InvalidParameters too, where the
        volume's geometry is none that it can say.
        """
        began = time.perf_counter()
        volume = context.volume()
        file, said = WRITERS[parameters.format](context, volume, parameters)
        stored, codecs = volume.stored, _codecs(volume, parameters)
        result = ExportResult(
            format=parameters.format,
            version=VERSIONS.get(parameters.format) or str(nifti_version(stored)),
            artifact=file.name,
            stored_bytes=file.size,
            sha256=file.sha256,
            array_shape=list(stored.array_shape),
            dtype=stored.dtype,
            codecs=codecs,
            notes=[*_notes(stored, parameters, codecs), *said],
            volume_digest=stored.digest,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
        )
        return Outcome(result, (file,))


def _nifti(context: JobContext, volume: Volume, parameters: ExportParameters) -> Written:
    depth = slab_depth(volume, (context.memory_budget - BASE_BYTES) // HELD)
    pieces = nifti_pieces(volume, depth, context.report)
    return context.artifacts.write_pieces(NIFTI, pieces, "application/gzip"), []


def _ome_zarr(context: JobContext, volume: Volume, parameters: ExportParameters) -> Written:
    entries = store_entries(volume, context.report, coded=parameters.keep_codecs)
    return context.artifacts.write_pieces(OME_ZARR, zip_pieces(entries), "application/zip"), []


def _dicom(context: JobContext, volume: Volume, parameters: ExportParameters) -> Written:
    series = DicomSeries(volume)
    room = context.memory_budget - _needed_by_dicom(volume.stored)
    entries = series.instances(slab_depth(volume, max(0, room) // HELD), context.report)
    pieces = zip_pieces(entries, comment=None)
    file = context.artifacts.write_pieces(DICOM, pieces, "application/zip")
    return file, list(_notes_of_dicom(series))


WRITERS: dict[str, Callable[[JobContext, Volume, ExportParameters], Written]] = {
    "nifti": _nifti,
    "ome-zarr": _ome_zarr,
    "dicom": _dicom,
}


def _needed_by_dicom(stored: StoredVolume) -> int:
    """What one plane takes while it is coded."""
    return BASE_BYTES + HELD_AS_DICOM * prod(stored.grid.shape[1:]) * FLOAT


def _notes_of_dicom(series: DicomSeries) -> Iterator[str]:
    if series.largest_error > 0:
        yield f"values were rounded to 16 bits, by {series.largest_error:.3g} at most"
    if series.sop_class == SECONDARY:
        yield "instances are Secondary Captures: the volume has not all that its modality's class asks for"
    if series.placement is None:
        yield "where the patient lies is unknown: instances have no position"


def _codecs(volume: Volume, parameters: ExportParameters) -> list[str]:
    """Those that who reads the file needs."""
    if parameters.format != "ome-zarr":
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
