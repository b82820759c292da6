"""Decoded, verified chunks of one Zarr v3 array, with a cache that is bounded in bytes.

zarr-python spends about 1 ms per chunk outside of decoding; sampling needs thousands of chunks. So the
common codec chains (little-endian bytes, zstd, crc32c; a codec of ours, crc32c; inside shards or not) are
decoded here by the same libraries that zarr calls; every other chain, and every store without synchronous
access, goes through zarr itself. Both ways verify checksums. See docs/adr/0003-reading-cubes.md.
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
from zarr.abc.codec import Codec
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest, SupportsGetSync
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import LocalStore

from storage.compressors import MissingPeer, NewerFormat
from storage.compressors.zarr_codec import FramedCodec
from storage.errors import CorruptVolume, UnreadableVolume
from storage.putt.zarr_codec import ChunkCodec, PuttCodec
from storage.shards import (
    ABSENT,
    CHECKSUMS,
    CRC_BYTES,
    chunks_per_shard,
    index_bytes,
    object_key,
    seal_of,
    shard_grid,
)

Array = NDArray[Any]
Index = tuple[int, ...]
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

    `seals` maps the key of each shard to its seal (storage/shards.py), as a volume's manifest records it;
    with it an exchanged or a missing shard or chunk raises CorruptVolume, as does any chunk whose checksum
    is wrong. Without it, absent chunks read as the fill value, as in Zarr. Decoded chunks are cached up
    to `cache_bytes` and must not be written to.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        *,
        cache_bytes: int = 0,
        seals: Mapping[str, int] | None = None,
    ) -> None:
        self.array = array
        self.seals = seals
        self.shape: Index = tuple(array.shape)
        self.chunk_shape: Index = tuple(array.chunks)
        self.grid_shape: Index = tuple(map(_ceil_div, self.shape, self.chunk_shape))
        self._cache = ByteLRU(cache_bytes)
        self._fetch = _fetcher(array, self.chunk_shape, seals)
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


def _fetcher(array: zarr.Array[Any], chunk_shape: Index, seals: Mapping[str, int] | None) -> Fetch:
    """The quickest way to a decoded chunk that verifies it: our own, or zarr's."""
    decode = ChunkDecoder.of(array, chunk_shape)
    if decode is None or not isinstance(array.store, SupportsGetSync):
        return lambda index: _fetch_by_zarr(array, chunk_shape, index)
    metadata = cast(ArrayV3Metadata, array.metadata)
    if isinstance(metadata.codecs[0], ShardingCodec):
        return ShardedFetch(array, decode, seals)
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
    """Decodes `bytes(little) [+ zstd] [+ crc32c]` and `codec [+ crc32c]`, a codec of ours.

    The crc32c is checked before anything is decoded, and zstd's own checksum.
    """

    shape: Index
    dtype: np.dtype[Any]
    codec: ChunkCodec | None
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
        crc = isinstance(codecs[-1], Crc32cCodec)
        first, *others = codecs[: len(codecs) - crc]
        zstd = [type(codec) for codec in others] == [ZstdCodec]
        if others and not zstd:
            return None
        own = first if isinstance(first, PuttCodec | FramedCodec) else None
        if (own and zstd) or not (own or _is_little(first, array.dtype)):
            return None
        return cls(chunk_shape, array.dtype.newbyteorder("<"), own, zstd, crc, array.fill_value)

    def __call__(self, encoded: Array, key: str) -> Array:
        """The chunk in `encoded` (uint8). Raises CorruptVolume, naming `key`, and UnreadableVolume."""
        body = _checked(encoded, key) if self.crc else encoded
        if self.codec is not None:
            return self._by_codec(self.codec, body, key)
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

    def _by_codec(self, codec: ChunkCodec, body: Array, key: str) -> Array:
        try:
            return codec.chunk_values(body.tobytes(), self.shape, self.dtype, self.fill)
        except (MissingPeer, NewerFormat) as error:
            raise UnreadableVolume(key, str(error)) from error
        except (ValueError, RuntimeError) as error:
            raise CorruptVolume(key, f"{codec.name}: {error}") from error

    def absent(self) -> Array:
        """A chunk that was never written."""
        return np.full(self.shape, self.fill, self.dtype)


def _is_little(codec: Codec, dtype: np.dtype[Any]) -> bool:
    """Whether it writes values as they are in memory here."""
    if not isinstance(codec, BytesCodec):
        return False
    return dtype.itemsize == 1 or (codec.endian is not None and codec.endian.value == "little")


def _is_plain_index(codec: ShardingCodec) -> bool:
    return codec.index_location.value == "end" and [type(c) for c in codec.index_codecs] == [
        BytesCodec,
        Crc32cCodec,
    ]


def _checked(encoded: Array, key: str) -> Array:
    """What stands before the four bytes of crc32c at the end."""
    body = encoded[:-CRC_BYTES]
    if len(encoded) < CRC_BYTES or google_crc32c.value(body) != _stored_crc(encoded):
        raise CorruptVolume(key, "its crc32c does not match")
    return body


def _stored_crc(encoded: Array) -> int:
    return int.from_bytes(encoded[-CRC_BYTES:].tobytes(), "little")


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
    """Inner chunks of shards; each shard's index is read once and kept.

    An index has a row for each inner chunk: offset, size, and under a seal the chunk's crc32c.
    """

    def __init__(self, array: zarr.Array[Any], decode: ChunkDecoder, seals: Mapping[str, int] | None) -> None:
        self._array = array
        self._decode = decode
        self._seals = seals
        self._per_shard = chunks_per_shard(array)
        self._grid = shard_grid(array)
        self._indexes = ByteLRU(INDEX_BYTES)

    def __call__(self, index: Index) -> tuple[Array, int]:
        """The decoded inner chunk and the bytes fetched for it, the shard's index included."""
        shard = tuple(i // n for i, n in zip(index, self._per_shard, strict=True))
        key = _chunk_key(self._array, shard)
        entries, fetched = self._index(shard, key)
        place = entries[tuple(i % n for i, n in zip(index, self._per_shard, strict=True))]
        if place[0] == ABSENT:
            if self._seals is not None:
                raise CorruptVolume(key, f"the chunk {index} is missing")
            return self._decode.absent(), fetched
        offset, size = int(place[0]), int(place[1])
        encoded = _get(self._array, key, RangeByteRequest(offset, offset + size))
        if encoded is None or encoded.nbytes != size:
            raise CorruptVolume(key, f"the chunk {index} breaks off")
        if self._seals is not None and _stored_crc(encoded) != place[2]:
            raise CorruptVolume(key, f"the chunk {index} is not the one that the manifest names")
        return self._decode(encoded, f"{key} chunk {index}"), fetched + size

    def _index(self, shard: Index, key: str) -> tuple[Array, int]:
        """The rows of a shard's index, (*per shard, 2 or 3), and the bytes fetched for it."""
        held = self._indexes.get(shard)
        if held is not None:
            return held, 0
        entries, fetched = self._read_index(shard, key)
        self._indexes.put(shard, entries)
        return entries, fetched

    def _read_index(self, shard: Index, key: str) -> tuple[Array, int]:
        size = index_bytes(math.prod(self._per_shard))
        encoded = _get(self._array, key, SuffixByteRequest(size))
        if encoded is None:
            if self._seals is not None:
                raise CorruptVolume(key, "the object is missing")
            return np.full((*self._per_shard, 2), ABSENT, np.uint64), 0
        if encoded.nbytes != size:
            raise CorruptVolume(key, "too short for a shard")
        entries = _checked(encoded, f"{key} index").view("<u8").reshape(*self._per_shard, 2)
        if self._seals is None:
            return entries, size
        checksums = self._checksums(shard)
        if seal_of(encoded.tobytes(), checksums.tobytes()) != self._seals.get(key):
            raise CorruptVolume(key, "not the object that the manifest names")
        crcs = checksums.view("<u4").reshape(*self._per_shard, 1).astype(np.uint64)
        return np.concatenate([entries, crcs], axis=-1), size + checksums.nbytes

    def _checksums(self, shard: Index) -> Array:
        """The recorded checksums of a shard's chunks, as bytes."""
        key = object_key(self._array, CHECKSUMS)
        size = CRC_BYTES * math.prod(self._per_shard)
        start = size * int(np.ravel_multi_index(shard, self._grid))
        part = _get(self._array, key, RangeByteRequest(start, start + size))
        if part is None or part.nbytes != size:
            raise CorruptVolume(key, "the checksums of the chunks are missing")
        return part


def _get(array: zarr.Array[Any], key: str, part: ByteRequest | None) -> Array | None:
    """Stored bytes as uint8, or None where there is no such object."""
    store = array.store
    if type(store) is LocalStore:
        return _get_local(f"{store.root}/{key}", part)
    buffer = cast(SupportsGetSync, store).get_sync(key, byte_range=part)
    return None if buffer is None else buffer.as_numpy_array().view(np.uint8)


def _get_local(path: str, part: ByteRequest | None) -> Array | None:
    """The same from a plain file, several times faster than through the store's path objects."""
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
    return object_key(array, array.metadata.encode_chunk_key(index))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _minus(a: int, b: int) -> int:
    return a - b
