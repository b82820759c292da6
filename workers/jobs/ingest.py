"""`ingest`: an upload becomes a volume. Submitted by the service with every upload."""

from __future__ import annotations

from math import prod
from typing import ClassVar

from storage.catalogue import INGEST
from storage.dicom_uids import UidMap
from storage.disk import sync
from storage.ingest import ingest
from storage.jobs import Queue
from storage.layout import SAMPLING
from storage.readers import open_scan, readers_replacing
from storage.readers.base import Limits, ScanHeader
from storage.tidy import store_key, upload_path
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.memory import peak_bytes
from workers.settings import WorkerSettings

BASE_BYTES = 192 << 20
"""What readers and codecs take beside voxels."""
SLABS = 4
"""So many slabs are in memory at once at most: as read, as rescaled, as shards, and as encoded."""


class IngestParameters(Parameters):
    """What the service found out when the upload arrived."""

    scan_format: str


class IngestResult(Result):
    """Facts of the new volume; all of them are in its row."""

    volume_digest: str
    array_shape: list[int]
    levels: int
    stored_bytes: int
    warnings: list[str]
    peak_memory_bytes: int


class Ingest(Kind[IngestParameters]):
    """Streams the scan, slab by slab, into an OME-Zarr volume."""

    name = INGEST
    version = "1"
    title = "Ingest"
    description = "Reads an uploaded scan into a chunked, checksummed OME-Zarr volume."
    queue = Queue.INTERACTIVE
    internal = True
    parameters = IngestParameters
    result: ClassVar[type[Result]] = IngestResult

    def memory_bytes(self, context: JobContext, parameters: IngestParameters) -> int:
        """What any scan takes; `run` asks again when it has seen the header."""
        return BASE_BYTES

    def run(self, context: JobContext, parameters: IngestParameters) -> Outcome:
        """Write the volume to this attempt's own folder. Raises ScanError, OverBudget or StorageFull."""
        volume_id = context.volume_record.id
        store = store_key(volume_id, context.job.attempt)
        destination = context.data_root / store
        destination.parent.mkdir(parents=True, exist_ok=True)
        sync(destination.parent.parent)
        upload, limits = upload_path(context.data_root, volume_id), limits_of(context.settings)
        with open_scan(upload, limits, readers_replacing(UidMap.of(context.data_root))) as scan:
            context.require_memory(BASE_BYTES + SLABS * slab_bytes(scan.header))
            stored = ingest(scan, destination, report=context.report)
        result = IngestResult(
            volume_digest=stored.digest,
            array_shape=list(stored.array_shape),
            levels=stored.levels,
            stored_bytes=stored.stored_bytes,
            warnings=list(stored.warnings),
            peak_memory_bytes=peak_bytes(),
        )
        return Outcome(result, volume=stored, store=store)


def limits_of(settings: WorkerSettings) -> Limits:
    """What a reader may spend on a scan."""
    return Limits(
        decoded_bytes=settings.scan_decoded_bytes,
        plane_bytes=settings.scan_plane_bytes,
        members=settings.scan_members,
        member_bytes=settings.scan_member_bytes,
    )


def slab_bytes(header: ScanHeader) -> int:
    """One row of level-0 shards, decoded."""
    depth, plane = min(header.grid.shape[0], SAMPLING.shard[0]), prod(header.grid.shape[1:])
    return depth * plane * header.dtype.itemsize
