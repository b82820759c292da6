"""A compressed volume, without a job or published as by one."""

from __future__ import annotations

from pathlib import Path

from storage.catalogue import Catalogue
from storage.chunks import ChunkReader
from storage.derived import Box, Coding, Drafts, derive, putt
from storage.derived_coding import Array
from storage.ids import derived_id
from storage.records import Derivation, DerivedVolume, VolumeRecord
from storage.tidy import store_key
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


def published(
    catalogue: Catalogue,
    root: Path,
    source: VolumeRecord,
    kind: str,
    coding: Coding = putt(20.0),  # noqa: B008
) -> VolumeRecord:
    """The same as a volume of the catalogue, which a job of `kind` has made."""
    job = catalogue.submit(kind, {}, volume_id=source.id)
    claimed = catalogue.claim(job.id, "worker", 60)
    assert claimed is not None
    volume_id = derived_id(job.id)
    store = store_key(volume_id, claimed.attempt)
    (root / store).parent.mkdir(parents=True)
    made = compressed(Volume.open(root / str(source.store)), root / store, coding)
    derived = DerivedVolume(f"{source.name} (compressed)", made.stored, store)
    catalogue.finish(job.id, claimed.attempt, {}, derived=derived)
    return catalogue.volume(volume_id)
