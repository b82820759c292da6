"""A compressed volume, without a job."""

from __future__ import annotations

from pathlib import Path

from storage.chunks import ChunkReader
from storage.derived import Box, Coding, Drafts, derive, putt
from storage.derived_coding import Array
from storage.records import Derivation
from storage.volume import Volume


def compressed(source: Volume, folder: Path, coding: Coding = putt(20.0)) -> Volume:  # noqa: B008
    """The volume with its chunks coded, in a folder of its own."""
    reader = ChunkReader(source.array(0))

    def values(frame: int | None, box: Box) -> Array:
        start, stop = zip(*((axis.start, axis.stop) for axis in box), strict=True)
        if frame is None:
            return reader.box(start, stop)
        return reader.box((frame, *start), (frame + 1, *stop))[0]

    stored = derive(
        source,
        folder,
        values,
        drafts=Drafts(folder.with_name("drafts"), "job_1", 1),
        derivation=Derivation("vol_1", source.stored.digest, "compress", {"step": 20.0}),
        coding=coding,
    )
    return Volume.open(folder, stored.digest)
