"""The entries of a volume's OME-Zarr 0.5 store, for one file: as they are, or with plain codecs.

As they are, each is compared with the manifest, and the manifest goes along: what was compressed stays
compressed, and a reader needs our codec. With plain codecs every level is decoded and coded anew, shard by
shard, as an ingested scan's is; a volume that has no other codecs is taken as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ShardingCodec
from zarr.core.buffer import Buffer
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore

from storage.chunks import ChunkReader
from storage.exports.objects import sound_object
from storage.exports.zips import metadata_first
from storage.grid import Frames
from storage.jobs import Progress
from storage.layout import create_group, writable
from storage.manifest import NAME as MANIFEST
from storage.records import StoredVolume
from storage.shards import shard_grid
from storage.volume import Volume

PLAIN = frozenset({"bytes", "zstd", "crc32c"})
OF_THE_STORE = ("digest", "stored_bytes", "gaps")
"""Facts that are true of a volume's own store alone."""
Entry = tuple[str, bytes]
Report = Callable[[Progress], None]


def store_entries(volume: Volume, report: Report, *, coded: bool = False) -> Iterator[Entry]:
    """Key and content of every object, metadata first; with `coded`, the codecs as they are. Holds one shard.

    Raises CorruptVolume, and what `report` raises.
    """
    if coded or codecs_of(volume) <= PLAIN:
        return _as_they_are(volume, report)
    return _coded_anew(volume, report)


def codecs_of(volume: Volume) -> frozenset[str]:
    """The names of all codecs of a volume's chunks."""
    found: set[str] = set()
    for level in range(len(volume.levels)):
        metadata = volume.array(level).metadata
        assert isinstance(metadata, ArrayV3Metadata)
        for codec in metadata.codecs:
            inner = codec.codecs if isinstance(codec, ShardingCodec) else (codec,)
            found |= {str(one.to_dict()["name"]) for one in inner}
    return frozenset(found)


def _as_they_are(volume: Volume, report: Report) -> Iterator[Entry]:
    keys = sorted(volume.manifest.objects, key=metadata_first)
    for done, key in enumerate(keys):
        report(Progress("writing", done, len(keys), "objects"))
        yield key, sound_object(volume, key)
    yield MANIFEST, volume.key_path(MANIFEST).read_bytes()


def _coded_anew(volume: Volume, report: Report) -> Iterator[Entry]:
    stored, objects = volume.stored, dict[str, Buffer]()
    group = create_group(MemoryStore(objects), stored.grid, _frames(stored), np.dtype(stored.dtype))
    group.attrs["tomotrain"] = {k: v for k, v in stored.to_json().items() if k not in OF_THE_STORE}
    arrays = [writable(group, level) for level in range(len(volume.levels))]
    yield from _taken(objects)
    done, total = 0, sum(int(np.prod(shard_grid(array))) for array in arrays)
    for level, array in enumerate(arrays):
        reader = ChunkReader(volume.array(level), seals=volume.manifest.seals)
        for place in itertools.product(*map(range, shard_grid(array))):
            report(Progress("writing", done, total, "shards"))
            _copy_shard(reader, array, place)
            yield from _taken(objects)
            done += 1


def _copy_shard(reader: ChunkReader, array: zarr.Array[Any], place: tuple[int, ...]) -> None:
    shard = array.shards or array.chunks
    start = tuple(at * side for at, side in zip(place, shard, strict=True))
    stop = tuple(min(low + side, end) for low, side, end in zip(start, shard, array.shape, strict=True))
    array[tuple(map(slice, start, stop))] = reader.box(start, stop)


def _taken(objects: dict[str, Buffer]) -> Iterator[Entry]:
    """What was written since the last time."""
    for key in sorted(objects, key=metadata_first):
        yield key, objects.pop(key).to_bytes()


def _frames(stored: StoredVolume) -> Frames | None:
    axis: Any = stored.axes[0]
    return Frames(axis, stored.array_shape[0], stored.frame_step_s) if axis in ("t", "c") else None
