"""What a stored Zarr chunk would unpack to, found before anything unpacks it.

The decompressors behind zarr-python trust the stream: 32 kB of zstd become 1 GB of memory. So the sizes that
blosc, zstd and lz4 streams declare are read from their headers, and gzip and zlib streams are unpacked piece
by piece, no further than a chunk's size. The chunks of a shard are found through its index.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from storage.errors import InvalidScan, ScanTooLarge

SLACK_BYTES = 1 << 20
"""What a chunk may have beyond its own size: checksums, incompressible data, half-filled zstd blocks."""
PIECE_BYTES = 1 << 20
ZSTD_MAGIC = 0xFD2FB528
ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
ZSTD_BLOCK_BYTES = 128 << 10
CRC_BYTES = 4
ABSENT = (1 << 64) - 1


@dataclass(frozen=True)
class Packing:
    """How chunks of `chunk_bytes` are stored: by what compressor, if any, and `inner` of them in a shard."""

    compressor: str | None
    chunk_bytes: int
    inner: int | None = None
    index_at_end: bool = True


def check_stored(file: BinaryIO, size: int, packing: Packing, key: str) -> None:
    """Refuse a stored chunk or shard of `size` bytes that holds or unpacks to more than its chunks do.

    Raises ScanTooLarge, or InvalidScan where a shard's index makes no sense.
    """
    allowed = packing.chunk_bytes + SLACK_BYTES
    for offset, length in _spans(file, size, packing, key):
        if length > allowed:
            raise ScanTooLarge(f"stored chunk {key!r}", length, allowed)
        if packing.compressor is not None:
            file.seek(offset)
            unpacked = unpacked_size(file.read(length), packing.compressor, allowed)
            if unpacked > allowed:
                raise ScanTooLarge(f"chunk {key!r}, unpacked", unpacked, allowed)


def unpacked_size(data: bytes, compressor: str, enough: int) -> int:
    """Bytes to which a stream claims to unpack, counted little further than `enough`; damage counts as 0."""
    if compressor in ("gzip", "zlib"):
        return _inflated_size(data, enough)
    if compressor == "zstd":
        return _zstd_size(data)
    layout = "<4xL" if compressor == "blosc" else "<L"
    return int(struct.unpack_from(layout, data)[0]) if len(data) >= struct.calcsize(layout) else 0


def _spans(file: BinaryIO, size: int, packing: Packing, key: str) -> Iterator[tuple[int, int]]:
    """(offset, length) of every chunk in a stored object (Zarr v3, "sharding codec": binary shard format)."""
    if packing.inner is None:
        yield 0, size
        return
    index_bytes = packing.inner * 16 + CRC_BYTES
    if size < index_bytes:
        raise InvalidScan(f"corrupt chunk {key}: too short for the index of its shard")
    file.seek(size - index_bytes if packing.index_at_end else 0)
    named = 0
    for offset, length in struct.iter_unpack("<QQ", file.read(index_bytes - CRC_BYTES)):
        if (offset, length) == (ABSENT, ABSENT):
            continue
        if offset + length > size:
            raise InvalidScan(f"corrupt chunk {key}: the index of its shard points outside of it")
        named += length
        if named > size:
            raise InvalidScan(
                f"corrupt chunk {key}: the index of its shard names the same bytes several times"
            )
        yield offset, length


def _inflated_size(data: bytes, enough: int) -> int:
    count = 0
    while data and count <= enough:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            while data and not unpacker.eof and count <= enough:
                count += len(unpacker.decompress(data, PIECE_BYTES))
                data = unpacker.unconsumed_tail
        except zlib.error:
            return count
        data = unpacker.unused_data
    return count


def _zstd_size(data: bytes) -> int:
    """Content sizes of all frames (RFC 8878, 3.1); of a frame that has none, the most its blocks can hold."""
    total, at = 0, 0
    while at + 9 <= len(data):
        magic, low = struct.unpack_from("<LL", data, at)
        if magic in ZSTD_SKIPPABLE:
            at += 8 + low
        elif magic == ZSTD_MAGIC:
            size, at = _zstd_frame(data, at + 4)
            total += size
        else:
            break
    return total


def _zstd_frame(data: bytes, at: int) -> tuple[int, int]:
    """(content size, where the next frame starts) of the frame whose header descriptor is at `at`."""
    descriptor = data[at]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    at += 2 - single + (0, 1, 2, 4)[descriptor & 3]
    declared = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
    at += width
    most, last = 0, False
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        most += ZSTD_BLOCK_BYTES if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)
    return (declared if width else most), at + 4 * checksum
