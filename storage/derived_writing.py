"""Writes the shards of a draft: values from a function, coded tile by tile, moments of what a reader decodes.

Each shard is claimed first, so that several workers may write at once (`storage.derived_help`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from storage.compressors.base import as_dtype
from storage.compressors.report import squared, unit_of
from storage.derived_coding import Coding
from storage.derived_draft import Draft, Shard
from storage.errors import CorruptVolume, StorageError
from storage.ingest import Moments, Report
from storage.jobs import Progress
from storage.layout import Level, Shape3
from storage.pyramid import coarser_box
from storage.shards import ABSENT, CRC_BYTES, object_key
from storage.volume import Volume

Array = NDArray[Any]
Box = tuple[slice, slice, slice]
Values = Callable[[int | None, Box], Array]
"""The voxels of level 0 in a box (z, y, x) of a frame; None where there are no frames."""
Coarser = Callable[[int, int | None, Box], Array]
"""The same of a coarser level."""


@dataclass(frozen=True)
class Call:
    """A call for help: what is to be done, in JSON that the caller of `assist` understands, and who is told
    for how many helpers there is work.
    """

    order: Mapping[str, Any]
    ring: Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """A shard of a level: its key, the level's number, and the box that it holds of a frame."""

    key: str
    level: int
    frame: int | None
    box: Box


@dataclass(frozen=True)
class Writer:
    """Writes the shards of all levels that the draft does not have."""

    draft: Draft
    arrays: tuple[zarr.Array[Any], ...]
    source: Volume
    coding: Coding
    dtype: np.dtype[Any]
    values: Values
    coarser: Coarser | None
    report: Report
    each: Callable[..., Iterator[Any]]

    def write(self, call: Call | None) -> int:
        """All of them; how many tiles were coded here."""
        missing = {place.key: place for place in self._all() if place.key not in self.draft.shards}
        if call is not None and len(missing) > 1 and self.draft.ask(call.order):
            call.ring(len(missing) - 1)
        made, claimed = 0, []
        for place in missing.values():
            if self.draft.claim(place.key):
                made += self._made(place)
            else:
                claimed.append(place.key)
        for key in self.draft.given_up(claimed, lambda: self._tell(0)):
            made += self._made(missing[key])
        self.draft.end_help()
        return made

    def assist(self, until: float) -> bool:
        """Those that nobody has claimed; whether there are more."""
        for place in self._all():
            if place.key in self.draft.shards or not self.draft.claim(place.key):
                continue
            self._made(place)
            if time.monotonic() > until:
                return True
        return False

    @property
    def levels(self) -> tuple[Level, ...]:
        """Of the volume, as of its source."""
        return tuple(self.source.levels)

    @cached_property
    def _unit(self) -> float:
        """In which errors are squared."""
        return unit_of(self.source.stored.statistics.range)

    def _all(self) -> Iterator[Place]:
        for number in range(len(self.levels)):
            yield from self.places(number)

    def _made(self, place: Place) -> int:
        """Code a shard; how many tiles it has."""
        self.draft.look()
        self._tell(0)
        return self._coded(place, self._block(place))

    def _tell(self, begun: int) -> None:
        """Report, with so many tiles of a shard that is not whole."""
        done = sum(shard.tiles for shard in self.draft.shards.values())
        self.report(Progress("coding", done + begun, self._total, "tiles"))

    @cached_property
    def _total(self) -> int:
        return sum(self._tiles(place) for place in self._all())

    def places(self, number: int) -> Iterator[Place]:
        """The shards of a level, frame by frame."""
        array = self.arrays[number]
        shape, shard = array.shape[-3:], (array.shards or array.chunks)[-3:]
        frames = range(array.shape[0]) if array.ndim == 4 else [None]
        for frame in frames:
            for index in itertools.product(*(range(-(-n // s)) for n, s in zip(shape, shard, strict=True))):
                z, y, x = (
                    slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(index, shard, shape, strict=True)
                )
                lead = () if frame is None else (frame,)
                key = array.metadata.encode_chunk_key((*lead, *index))
                yield Place(object_key(array, key), number, frame, (z, y, x))

    def _block(self, place: Place) -> Array:
        """The voxels of a shard, checked."""
        number = place.level
        if number == 0:
            block = self.values(place.frame, place.box)
        elif self.coarser is not None:
            block = self.coarser(number, place.frame, place.box)
        else:
            start, stop = zip(*((axis.start, axis.stop) for axis in place.box), strict=True)
            finer, coarse = self.levels[number - 1 : number + 1]
            try:
                block = coarser_box(self.arrays[number - 1], place.frame or 0, finer, coarse, start, stop)
            except CorruptVolume as error:
                raise StorageError(
                    f"what was just written cannot be read back: {error}; try again"
                ) from error
        shape = tuple(axis.stop - axis.start for axis in place.box)
        if block.shape != shape:
            raise ValueError(f"values of shape {block.shape} were given for a box of {shape}")
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise ValueError("values that are not finite were given for a derived volume")
        return block if block.dtype == self.dtype else as_dtype(block, self.dtype)

    def _coded(self, place: Place, block: Array) -> int:
        """Code a shard's tiles and add it to the draft; how many they were."""
        number = place.level
        array = self.arrays[number]
        chunk, shard = _three(array.chunks), _three(array.shards or array.chunks)
        grid = [s // c for s, c in zip(shard, chunk, strict=True)]
        inside = [-(-n // c) for n, c in zip(block.shape, chunk, strict=True)]
        tiles = list(np.ndindex(*inside))
        coded: list[_Coded] = []
        exact = self.coding.lossless or number > 0

        def code(index: tuple[int, ...]) -> _Coded:
            part = block[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))]
            return _Coded.of(self.coding, part, chunk, exact, self._unit)

        for one in self.each(code, tiles):
            coded.append(one)
            self._tell(len(coded))
        at = {index: one.data for index, one in zip(tiles, coded, strict=True)}
        content = shard_bytes([at.get(index) for index in np.ndindex(*grid)])
        moments = Moments() if number else Moments.of(block) if exact else merged(coded)
        self.draft.add(
            place.key,
            content,
            tiles=len(tiles),
            moments=moments,
            squares=math.fsum(one.squares for one in coded),
            largest=max(one.largest for one in coded),
        )
        return len(tiles)

    def _tiles(self, place: Place) -> int:
        chunk = self.arrays[place.level].chunks[-3:]
        return math.prod(-(-(axis.stop - axis.start) // c) for axis, c in zip(place.box, chunk, strict=True))


@dataclass(frozen=True)
class _Coded:
    """A tile as bytes; what it decodes to, and its errors, squared in some unit."""

    data: bytes
    moments: Moments = field(default_factory=Moments)
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, coding: Coding, values: Array, chunk: Shape3, exact: bool, unit: float) -> _Coded:
        """The part of a tile that lies within the array; `exact` spares its decoding."""
        data = coding.encoded(values, chunk)
        if exact:
            return cls(data)
        told = coding.decoded(data, values.shape, chunk, values.dtype)
        errors = np.subtract(told, values, dtype=np.float64).ravel()
        return cls(data, Moments.of(told), squared(errors, unit), float(np.abs(errors).max()))


def shard_bytes(chunks: Sequence[bytes | None]) -> bytes:
    """A shard of chunks in C order, each followed by its crc32c, and the index at the end; None is absent.

    As the sharding-indexed codec of Zarr v3 lays it out.
    """
    entries = np.full((len(chunks), 2), ABSENT, "<u8")
    parts, offset = [], 0
    for number, chunk in enumerate(chunks):
        if chunk is not None:
            entries[number] = offset, len(chunk) + CRC_BYTES
            parts += [chunk, _crc(chunk)]
            offset += len(chunk) + CRC_BYTES
    index = entries.tobytes()
    return b"".join([*parts, index, _crc(index)])


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def _three(sides: Sequence[int]) -> Shape3:
    z, y, x = sides[-3:]
    return z, y, x


def merged(parts: Sequence[Shard] | Sequence[_Coded]) -> Moments:
    """Of all that they hold, in this order."""
    moments = Moments()
    for part in parts:
        moments = moments.merge(part.moments)
    return moments
