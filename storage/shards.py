"""What fixes every inner chunk of a sharded array to its place.

A chunk's crc32c says that it is whole, and a shard's index where it lies; neither says that it is *this*
chunk. Two shards whose chunks compress to the same sizes (constant regions, pure noise) have equal indexes,
and could change places unseen. So a volume keeps, beside each array's metadata, the crc32c of every chunk in
the file `chunks.crc32c`: four bytes a chunk, shard after shard in C order. Its manifest keeps for each shard
one *seal*: the crc32c over the shard's index and its part of that file.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

CHECKSUMS = "chunks.crc32c"
CRC_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and size of an inner chunk that a shard does not hold (sharding-indexed codec, Zarr v3)."""


def shard_grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Shards along each axis."""
    return tuple(-(-n // s) for n, s in zip(array.shape, array.shards or array.chunks, strict=True))


def chunks_per_shard(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Inner chunks of a shard along each axis."""
    return tuple(-(-s // c) for s, c in zip(array.shards or array.chunks, array.chunks, strict=True))


def index_bytes(chunks: int) -> int:
    """Size of the index of a shard with so many chunks: offset and size of each, and a crc32c."""
    return 16 * chunks + CRC_BYTES


def object_key(array: zarr.Array[Any], name: str) -> str:
    """The key in the array's store of an object of the array."""
    return f"{array.path}/{name}" if array.path else name


def seal_of(index: bytes, checksums: bytes) -> int:
    """The crc32c over a shard's index and the checksums of its chunks."""
    return int(google_crc32c.extend(google_crc32c.value(index), checksums))


def record_checksums(array: zarr.Array[Any], folder: Path) -> dict[str, int]:
    """Write the checksums of an array of the group in `folder`; the seal of each shard by its key.

    Every shard must be there; chunks that lie outside of the array are absent.
    """
    chunks = math.prod(chunks_per_shard(array))
    seals = {}
    with (folder / object_key(array, CHECKSUMS)).open("wb") as file:
        for shard in itertools.product(*map(range, shard_grid(array))):
            key = object_key(array, array.metadata.encode_chunk_key(shard))
            index, checksums = _read_shard(folder / key, chunks)
            file.write(checksums)
            seals[key] = seal_of(index, checksums)
    return seals


def _read_shard(path: Path, chunks: int) -> tuple[bytes, bytes]:
    """A shard's index, and the last four bytes of each chunk; zeros for one outside of the array."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = index_bytes(chunks)
        index = os.pread(file, size, os.fstat(file).st_size - size)
        entries: NDArray[np.uint64] = np.frombuffer(index[:-CRC_BYTES], "<u8").reshape(chunks, 2)
        return index, b"".join(_last_bytes(file, *entry) for entry in entries.tolist())
    finally:
        os.close(file)


def _last_bytes(file: int, offset: int, size: int) -> bytes:
    return bytes(CRC_BYTES) if offset == ABSENT else os.pread(file, CRC_BYTES, offset + size - CRC_BYTES)
