"""A volume that a job reads by cubes, and what its result says of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Result
from workers.scans import RecordedCubes, chunks_of, level_bytes


class ReadResult(Result):
    """How much of a volume was read."""

    cubes_read: int = Field(description="boxes read in all")
    share_read: float = Field(description="voxels in the union of all boxes over voxels of the volume")
    chunks_read: int | None = Field(description="chunks decoded; null where a Dask cluster read them")
    chunk_share_read: float | None = Field(
        description="chunks decoded over chunks of level 0; above 1 when the cache was too small"
    )
    bytes_read: int | None = Field(description="compressed bytes fetched from the store")


@contextmanager
def recorded(context: JobContext, volume: Volume) -> Iterator[RecordedCubes]:
    """A reader of a volume that remembers what it gave; closed at the end."""
    settings = context.settings
    reader = volume.cube_reader(cache_bytes=settings.cache_bytes, scheduler=settings.dask_scheduler)
    try:
        yield RecordedCubes(reader)
    finally:
        reader.close()


def cache_bytes(context: JobContext) -> int:
    """What the reader of the job's own volume keeps at most. Raises VolumeNotReady."""
    return min(context.settings.cache_bytes, level_bytes(context.stored))


def reading_of(context: JobContext, volume: Volume, read: RecordedCubes) -> dict[str, Any]:
    """The fields of a `ReadResult`."""
    counts, stored = read.reader.counts, volume.stored
    local = context.settings.dask_scheduler == "threads"
    return {
        "cubes_read": counts.cubes,
        "share_read": read.covered_voxels() / stored.grid.voxels,
        "chunks_read": counts.chunks if local else None,
        "chunk_share_read": counts.chunks / chunks_of(volume) if local else None,
        "bytes_read": counts.bytes if local else None,
    }
