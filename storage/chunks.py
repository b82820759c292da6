"""Decoded, verified chunks of one Zarr v3 array, with a cache that is bounded in bytes.

zarr-python spends about 1 ms per chunk outside of decoding; sampling needs thousands of chunks. So the
common codec chains (little-endian bytes, zstd, crc32c; inside shards or not) are decoded here by the same
libraries that zarr calls; every other chain, and every store without synchronous access, goes through
zarr itself. Both ways verify checksums. See docs/adr/0003-reading-cubes.md.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest, SupportsGetSync
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import LocalStore

from storage.errors import CorruptVolume

Array = NDArray[Any]
Index = tuple[int, ...]
ABSENT = np.uint64(2**64 - 1)
"""Offset and size of an inner chunk that a shard does not hold (sharding-indexed codec, Zarr v3)."""
INDEX_BYTES = 64 << 20
"""Most memory for shard indexes: those of 16,000 shards of 256 chunks."""


@dataclass(frozen=True)
class ReadCounts:
    """What has been read so far: cubes delivered, chunks decoded, bytes fetched and decoded, cache hits."""

    cubes: int = 0
    chunks: int = 0
    bytes: int = 0
    decoded_bytes: int = 0
    hits: int = 0


class ByteLRU:
    """Arrays by key, least recently used first out, at most `limit` bytes in all. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrays: OrderedDict[Any, Array] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def get(self, key: Any) -> Array | None:
        """The array, now the most recently used one, or None."""
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
            return array

    def put(self, key: Any, array: Array) -> None:
        """Keep the array if it fits at all, and drop the oldest until everything fits."""
        if array.nbytes > self._limit:
            return
        with self._lock:
            previous = self._arrays.pop(key, None)
            self._bytes += array.nbytes - (0 if previous is None else previous.nbytes)
            self._arrays[key] = array
            while self._bytes > self._limit:
                _, dropped = self._arrays.popitem(last=False)
                self._bytes -= dropped.nbytes


class ChunkReader:
    """Reads the inner chunks of `array` (those inside the shards, where there are shards).

    `index_checksums` maps the key of each shard to the crc32c of its index, as a volume's manifest
    records it; with it an exchanged or a missing shard raises CorruptVolume, as does any chunk whose
    checksum is wrong. Without it, absent chunks read as the fill value, as in Zarr. Decoded chunks
    are cached up to `cache_bytes` and must not be written to.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        *,
        cache_bytes: int = 0,
        index_checksums: Mapping[str, int] | None = None,
    ) -> None:
        self.array = array
        self.shape: Index = tuple(array.shape)
        self.chunk_shape: Index = tuple(array.chunks)
        self.grid_shape: Index = tuple(map(_ceil_div, self.shape, self.chunk_shape))
        self._cache = ByteLRU(cache_bytes)
        self._fetch = _fetcher(array, self.chunk_shape, index_checksums)
        self._lock = threading.Lock()
        self._chunks = self._bytes = self._decoded = self._hits = 0

    @property
    def counts(self) -> ReadCounts:
        """Chunks and bytes read since the reader was made."""
        return ReadCounts(0, self._chunks, self._bytes, self._decoded, self._hits)

    def cached(self, index: Index) -> bool:
        """Whether the chunk would be served without touching the store."""
        return index in self._cache

    def chunk(self, index: Index) -> Array:
        """The decoded chunk at this index of the chunk grid; full size, also at the border."""
        held = self._cache.get(index)
        if held is not None:
            with self._lock:
                self._hits += 1
            return held
        chunk, fetched = self._fetch(index)
        chunk.setflags(write=False)
        self._cache.put(index, chunk)
        with self._lock:
            self._chunks += 1
            self._bytes += fetched
            self._decoded += chunk.nbytes
        return chunk

    def box(self, start: Index, stop: Index) -> Array:
        """The voxels `start <= index < stop` as one new array; holds the box and one chunk."""
        out = np.empty(tuple(map(_minus, stop, start)), self.array.dtype)
        spans = [
            range(a // c, _ceil_div(b, c)) for a, b, c in zip(start, stop, self.chunk_shape, strict=True)
        ]
        for index in itertools.product(*spans):
            low = [i * c for i, c in zip(index, self.chunk_shape, strict=True)]
            first = [max(a, o) for a, o in zip(start, low, strict=True)]
            last = [min(b, o + c) for b, o, c in zip(stop, low, self.chunk_shape, strict=True)]
            source = tuple(slice(f - o, e - o) for f, e, o in zip(first, last, low, strict=True))
            target = tuple(slice(f - a, e - a) for f, e, a in zip(first, last, start, strict=True))
            out[target] = self.chunk(index)[source]
        return out


Fetch = Callable[[Index], tuple[Array, int]]


def _fetcher(array: zarr.Array[Any], chunk_shape: Index, checksums: Mapping[str, int] | None) -> Fetch:
    """The quickest way to a decoded chunk that verifies it: our own, or zarr's."""
    decode = ChunkDecoder.of(array, chunk_shape)
    if decode is None or not isinstance(array.store, SupportsGetSync):
        return lambda index: _fetch_by_zarr(array, chunk_shape, index)
    metadata = cast(ArrayV3Metadata, array.metadata)
    if isinstance(metadata.codecs[0], ShardingCodec):
        return ShardedFetch(array, chunk_shape, decode, checksums)
    return PlainFetch(array, decode)


def _fetch_by_zarr(array: zarr.Array[Any], chunk_shape: Index, index: Index) -> tuple[Array, int]:
    box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk_shape, strict=True))
    try:
        part = np.asarray(array[box])
    except (ValueError, RuntimeError, OSError) as error:
        raise CorruptVolume(array.metadata.encode_chunk_key(index), str(error)) from error
    if part.shape == chunk_shape:
        return part, part.nbytes
    chunk = np.full(chunk_shape, array.fill_value, array.dtype)
    chunk[tuple(slice(0, n) for n in part.shape)] = part
    return chunk, part.nbytes


@dataclass(frozen=True)
class ChunkDecoder:
    """Decodes `bytes(little) [+ zstd] [+ crc32c]`, checking the crc32c and zstd's own checksum."""

    shape: Index
    dtype: np.dtype[Any]
    zstd: bool
    crc: bool
    fill: Any

    @classmethod
    def of(cls, array: zarr.Array[Any], chunk_shape: Index) -> ChunkDecoder | None:
        """The decoder of an array's inner chunks, or None when its codec chain is another one."""
        metadata = array.metadata
        if not isinstance(metadata, ArrayV3Metadata) or array.dtype.kind not in "biuf":
            return None
        codecs = metadata.codecs
        if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
            if not _is_plain_index(codecs[0]):
                return None
            codecs = codecs[0].codecs
        kinds = [type(codec) for codec in codecs]
        if kinds not in (
            [BytesCodec],
            [BytesCodec, Crc32cCodec],
            [BytesCodec, ZstdCodec],
            [BytesCodec, ZstdCodec, Crc32cCodec],
        ):
            return None
        endian = cast(BytesCodec, codecs[0]).endian
        if array.dtype.itemsize > 1 and (endian is None or endian.value != "little"):
            return None
        little = array.dtype.newbyteorder("<")
        return cls(chunk_shape, little, ZstdCodec in kinds, Crc32cCodec in kinds, array.fill_value)

    def __call__(self, encoded: Array, key: str) -> Array:
        """The chunk in `encoded` (uint8). Raises CorruptVolume, naming `key`."""
        body = _checked(encoded, key) if self.crc else encoded
        chunk = np.empty(self.shape, self.dtype)
        if not self.zstd:
            if body.nbytes != chunk.nbytes:
                raise CorruptVolume(key, f"a chunk of {body.nbytes} bytes instead of {chunk.nbytes}")
            return body.view(self.dtype).reshape(self.shape)
        try:
            numcodecs.zstd.decompress(body, chunk)
        except (RuntimeError, ValueError) as error:
            raise CorruptVolume(key, f"zstd: {error}") from error
        return chunk

    def absent(self) -> Array:
        """A chunk that was never written."""
        return np.full(self.shape, self.fill, self.dtype)


def _is_plain_index(codec: ShardingCodec) -> bool:
    return codec.index_location.value == "end" and [type(c) for c in codec.index_codecs] == [
        BytesCodec,
        Crc32cCodec,
    ]


def _checked(encoded: Array, key: str) -> Array:
    """What stands before the four bytes of crc32c at the end."""
    body = encoded[:-4]
    if len(encoded) < 4 or google_crc32c.value(body) != int.from_bytes(encoded[-4:].tobytes(), "little"):
        raise CorruptVolume(key, "its crc32c does not match")
    return body


@dataclass(frozen=True)
class PlainFetch:
    """Chunks that are one object each."""

    array: zarr.Array[Any]
    decode: ChunkDecoder

    def __call__(self, index: Index) -> tuple[Array, int]:
        """The decoded chunk and the bytes fetched for it."""
        key = _chunk_key(self.array, index)
        encoded = _get(self.array, key, None)
        if encoded is None:
            return self.decode.absent(), 0
        return self.decode(encoded, key), encoded.nbytes


class ShardedFetch:
    """Inner chunks of shards; each shard's index is read once and kept."""

    def __init__(
        self,
        array: zarr.Array[Any],
        chunk_shape: Index,
        decode: ChunkDecoder,
        checksums: Mapping[str, int] | None,
    ) -> None:
        self._array = array
        self._decode = decode
        self._checksums = checksums
        self._per_shard: Index = tuple(map(_ceil_div, array.shards or chunk_shape, chunk_shape))
        self._indexes = ByteLRU(INDEX_BYTES)

    def __call__(self, index: Index) -> tuple[Array, int]:
        """The decoded inner chunk and the bytes fetched for it, the shard's index included."""
        shard = tuple(i // n for i, n in zip(index, self._per_shard, strict=True))
        key = _chunk_key(self._array, shard)
        entries, fetched = self._index(shard, key)
        place = entries[tuple(i % n for i, n in zip(index, self._per_shard, strict=True))]
        if place[0] == ABSENT:
            if self._checksums is not None:
                raise CorruptVolume(key, f"the chunk {index} is missing")
            return self._decode.absent(), fetched
        offset, size = int(place[0]), int(place[1])
        encoded = _get(self._array, key, RangeByteRequest(offset, offset + size))
        if encoded is None or encoded.nbytes != size:
            raise CorruptVolume(key, f"the chunk {index} breaks off")
        return self._decode(encoded, f"{key} chunk {index}"), fetched + size

    def _index(self, shard: Index, key: str) -> tuple[Array, int]:
        """Offset and size of each inner chunk, (*per shard, 2), and the bytes fetched for it."""
        held = self._indexes.get(shard)
        if held is not None:
            return held, 0
        entries, fetched = self._read_index(key)
        self._indexes.put(shard, entries)
        return entries, fetched

    def _read_index(self, key: str) -> tuple[Array, int]:
        size = 16 * math.prod(self._per_shard) + 4
        encoded = _get(self._array, key, SuffixByteRequest(size))
        expected = None if self._checksums is None else self._checksums.get(key)
        if encoded is None:
            if self._checksums is not None:
                raise CorruptVolume(key, "the object is missing")
            return np.full((*self._per_shard, 2), ABSENT), 0
        if encoded.nbytes != size:
            raise CorruptVolume(key, "too short for a shard")
        body = _checked(encoded, f"{key} index")
        if self._checksums is not None and index_checksum(encoded.tobytes()) != expected:
            raise CorruptVolume(key, "not the object that the manifest names")
        return body.view("<u8").reshape(*self._per_shard, 2), size


def index_checksum(shard_tail: bytes) -> int:
    """The crc32c of a shard's index, which its last four bytes hold."""
    return int.from_bytes(shard_tail[-4:], "little")


def _get(array: zarr.Array[Any], key: str, part: ByteRequest | None) -> Array | None:
    """Stored bytes as uint8, or None where there is no such object."""
    store = array.store
    if type(store) is LocalStore:
        return _get_local(f"{store.root}/{key}", part)
    buffer = cast(SupportsGetSync, store).get_sync(key, byte_range=part)
    return None if buffer is None else buffer.as_numpy_array().view(np.uint8)


def _get_local(path: str, part: ByteRequest | None) -> Array | None:
    """The same from a plain file, four times faster than through the store's path objects."""
    try:
        file = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if isinstance(part, RangeByteRequest):
            return np.frombuffer(os.pread(file, part.end - part.start, part.start), np.uint8)
        size = os.fstat(file).st_size
        start = max(size - part.suffix, 0) if isinstance(part, SuffixByteRequest) else 0
        return np.frombuffer(os.pread(file, size - start, start), np.uint8)
    finally:
        os.close(file)


def _chunk_key(array: zarr.Array[Any], index: Index) -> str:
    name = array.metadata.encode_chunk_key(index)
    return f"{array.path}/{name}" if array.path else name


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _minus(a: int, b: int) -> int:
    return a - b
