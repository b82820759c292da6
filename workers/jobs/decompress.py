"""`decompress`: a compressed volume becomes a plain one, voxel for voxel what is decoded."""

from __future__ import annotations

import time
from math import prod
from typing import ClassVar

import numpy as np
from pydantic import Field

from storage.derived import PLAIN, derive
from storage.derived_report import LevelReader
from storage.ids import derived_id
from storage.layout import VIEWING
from storage.records import Derivation, DerivedVolume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.jobs.compress import drafts_of, place_of
from workers.memory import BASE_BYTES, peak_bytes
from workers.packages import versions

HELD = 4
"""Shards in memory at once: as read, as coded, joined, and as written."""


class DecompressParameters(Parameters):
    """There is nothing to choose."""


class DecompressResult(Result):
    """The plain volume."""

    volume_id: str
    volume_digest: str
    source_digest: str
    array_shape: list[int]
    stored_bytes: int
    source_bytes: int = Field(description="of the compressed volume, as it is stored")
    seconds: float
    mb_s: float = Field(description="million bytes of voxels a second")
    peak_memory_bytes: int
    packages: dict[str, str]


class Decompress(Kind[DecompressParameters]):
    """Reads every tile once and stores it plain."""

    name = "decompress"
    version = "1"
    title = "Decompress"
    description = "Makes a plain volume of a compressed one: the voxels and levels that it decodes to."
    parameters = DecompressParameters
    result: ClassVar[type[Result]] = DecompressResult

    def memory_bytes(self, context: JobContext, parameters: DecompressParameters) -> int:
        """A shard, as often as it is held."""
        return BASE_BYTES + HELD * prod(VIEWING.shard) * np.dtype(context.stored.dtype).itemsize

    def run(self, context: JobContext, parameters: DecompressParameters) -> Outcome:
        """Decompress. Raises CorruptVolume and StorageFull."""
        began = time.perf_counter()
        source = context.volume()
        reader = LevelReader(source)
        store, folder = place_of(context)
        stored = derive(
            source,
            folder,
            lambda frame, box: reader.box(0, frame, box),
            coarser=reader.box,
            drafts=drafts_of(context),
            derivation=Derivation(context.volume_record.id, source.stored.digest, self.name),
            coding=PLAIN,
            keep_gaps=True,
            report=context.report,
        )
        seconds = time.perf_counter() - began
        result = DecompressResult(
            volume_id=derived_id(context.job.id),
            volume_digest=stored.digest,
            source_digest=source.stored.digest,
            array_shape=list(stored.array_shape),
            stored_bytes=stored.stored_bytes,
            source_bytes=source.stored.stored_bytes,
            seconds=seconds,
            mb_s=stored.voxel_bytes / 1e6 / seconds,
            peak_memory_bytes=peak_bytes(),
            packages=versions(),
        )
        name = f"{context.volume_record.name}, decompressed"
        return Outcome(result, derived=DerivedVolume(name, stored, store))
