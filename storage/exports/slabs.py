"""The voxels of a volume's finest level in the order of files: frame after frame, a few planes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from storage.chunks import ChunkReader
from storage.readers.base import Slab
from storage.readers.scan import slab_ranges
from storage.records import StoredVolume
from storage.volume import Volume


def plane_bytes(stored: StoredVolume) -> int:
    """Bytes of one plane (y, x)."""
    return prod(stored.grid.shape[1:]) * np.dtype(stored.dtype).itemsize


def slab_depth(volume: Volume, most_bytes: int) -> int:
    """Planes of a slab: a chunk's depth, or half as many, and so on, so that they take `most_bytes`; at least
    one. Thinner slabs decode each chunk several times.
    """
    depth = min(volume.array(0).chunks[-3], volume.stored.grid.shape[0])
    while depth > 1 and depth * plane_bytes(volume.stored) > most_bytes:
        depth = -(-depth // 2)
    return depth


def slabs(volume: Volume, depth: int) -> Iterator[Slab]:
    """Every voxel of level 0 once, ordered by frame, then z. Raises CorruptVolume."""
    array = volume.array(0)
    reader = ChunkReader(array, seals=volume.manifest.seals)
    frames = array.shape[0] if array.ndim == 4 else 1
    planes, rows, columns = array.shape[-3:]
    for frame, start, stop in slab_ranges(frames, planes, depth):
        lead = ((), ()) if array.ndim == 3 else ((frame,), (frame + 1,))
        box = reader.box((*lead[0], start, 0, 0), (*lead[1], stop, rows, columns))
        yield Slab(frame, start, box.reshape(-1, rows, columns))
