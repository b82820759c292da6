"""A volume made of another one, shard by shard, by any function that gives the values of a box.

What is in memory at a time is one shard, 64 x 256 x 256 voxels at most. A shard that is whole is never made
twice, whatever becomes of the attempt that made it (`storage.derived_draft`). Tiles of a shard are coded by
several threads, shards by several workers, wherever some are idle (`storage.derived_help`): the bytes are the
same. Statistics are those of what a reader decodes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from storage.compressors.base import as_dtype
from storage.derived_coding import PLAIN, Coding, framed, putt
from storage.derived_draft import Draft, Drafts, Shard
from storage.disk import sync
from storage.errors import CorruptVolume, StorageError
from storage.gaps import NAME as GAPS
from storage.grid import Frames
from storage.ingest import CURE_OF_GAPS, Moments, Report, seal
from storage.jobs import Progress
from storage.layout import Level, Shape3, create_group, writable
from storage.manifest import Manifest
from storage.pyramid import coarser_box
from storage.records import Derivation, StoredVolume
from storage.shards import ABSENT, CRC_BYTES, object_key
from storage.volume import Volume

__all__ = [
    "PLAIN",
    "Box",
    "Call",
    "Coding",
    "Drafts",
    "assist",
    "derive",
    "drafted",
    "framed",
    "joined",
    "putt",
]

Array = NDArray[Any]
Box = tuple[slice, slice, slice]
Values = Callable[[int | None, Box], Array]
"""The voxels of level 0 in a box (z, y, x) of a frame; None where there are no frames."""
Coarser = Callable[[int, int | None, Box], Array]
"""The same of a coarser level."""
FORMAT = 1
"""Of drafts: raise it when what is written for the same purpose changes."""


@dataclass(frozen=True)
class Call:
    """A call for help: what is to be done, in JSON that the caller of `assist` understands, and who is told
    for how many helpers there is work.
    """

    order: Mapping[str, Any]
    ring: Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """A volume that is whole and sealed, and not published yet.

    `squares` and `largest` are the sum of squared errors and the largest error of level 0, against what it
    was made of; `level_bytes` are the bytes of each level's shards; `made`, `helped` and `kept` count tiles
    that were coded now, by others that helped, and by earlier attempts.
    """

    draft: Draft
    stored: StoredVolume
    squares: float
    largest: float
    level_bytes: tuple[int, ...]
    made: int
    helped: int
    kept: int

    def volume(self) -> Volume:
        """Opened where it lies now."""
        return Volume.open(self.draft.store, self.stored.digest)

    def publish(self, folder: Path) -> StoredVolume:
        """Move it to its place."""
        self.draft.publish(folder)
        return self.stored


def derive(
    source: Volume,
    folder: Path,
    values: Values,
    *,
    drafts: Drafts,
    derivation: Derivation,
    coding: Coding = PLAIN,
    **how: Any,
) -> StoredVolume:
    """Write the volume and move it to `folder`; all else as `drafted`."""
    return drafted(source, values, drafts=drafts, derivation=derivation, coding=coding, **how).publish(folder)


def drafted(  # noqa: PLR0913
    source: Volume,
    values: Values,
    *,
    drafts: Drafts,
    derivation: Derivation,
    coding: Coding = PLAIN,
    dtype: np.dtype[Any] | None = None,
    coarser: Coarser | None = None,
    warnings: Sequence[str] = (),
    versions: Sequence[str] = (),
    keep_gaps: bool = False,
    report: Report = lambda progress: None,
    threads: int = 1,
    call: Call | None = None,
) -> Written:
    """A volume with the geometry, frames, metadata and warnings of `source`, and values of its own.

    `values` and `coarser` are asked for one box after the other, each the part of a shard that lies within
    the level; they give finite values of the box's shape, which are rounded to `dtype` and kept within it
    (the source's if it is not given). Without `coarser`, a level is made of means of the one that was written
    before it. `versions` are of programs whose change makes drafts worthless. With `keep_gaps` the volume
    knows as its source which voxels were never measured. With a `call`, which takes `coarser` too, others may
    help by `assist`.

    `report` is called between tiles and may raise, to cancel: what is whole is found by the next attempt.
    Raises ValueError for values of another shape or not finite, StorageFull, LeaseLost, and as `values`.
    """
    dtype = np.dtype(source.stored.dtype) if dtype is None else np.dtype(dtype)
    purpose = _purpose(derivation, coding, dtype, versions)
    draft = drafts.open(purpose)
    group = _group(draft, source, coding, dtype)
    arrays = tuple(writable(group, number) for number in range(len(source.levels)))
    with parallel(threads) as each:
        writer = _Writer(draft, arrays, source.levels, coding, dtype, values, coarser, report, each)
        made = writer.write(call if coarser is not None else None)
    if keep_gaps and source.stored.gaps:
        _copy_gaps(source, draft)
    report(Progress("manifest"))
    finest = [draft.shards[place.key] for place in writer.places(0)]
    stored = replace(
        source.stored,
        array_shape=tuple(arrays[0].shape),
        dtype=dtype.name,
        statistics=replace(
            _merged(finest).statistics(replaced=0),
            replaced=source.stored.statistics.replaced if keep_gaps else 0,
        ),
        warnings=(*_still_true(source.stored.warnings, keep_gaps), *warnings),
        derived=derivation,
    )
    return Written(
        draft,
        seal(group, draft.store, stored),
        math.fsum(shard.squares for shard in finest),
        max(shard.largest for shard in finest),
        tuple(
            sum(draft.shards[place.key].size for place in writer.places(n)) for n in range(len(source.levels))
        ),
        made,
        draft.helped,
        sum(shard.tiles for shard in draft.shards.values()) - made - draft.helped,
    )


def joined(drafts: Drafts) -> Iterator[tuple[Draft, Mapping[str, Any]]]:
    """The drafts whose owners ask for help and run the same program, and what is to be done."""
    for draft, order in drafts.joined():
        if order["program"] == _program():
            yield draft, order["work"]


def assist(
    draft: Draft,
    source: Volume,
    values: Values,
    coarser: Coarser,
    *,
    coding: Coding = PLAIN,
    report: Report = lambda progress: None,
    threads: int = 1,
    until: float = math.inf,
) -> bool:
    """Code shards of another worker's draft, one of `joined`, until each of them was claimed, or
    `time.monotonic()` is past `until`; whether there is more to do.

    All else as its owner gives it to `drafted`. Raises LeaseLost where the owner no longer waits, and as
    `drafted`.
    """
    group = zarr.open_group(draft.store, mode="r", zarr_format=3)
    arrays = tuple(writable(group, number) for number in range(len(source.levels)))

    def signed(progress: Progress) -> None:
        draft.sign()
        report(progress)

    with parallel(threads) as each:
        dtype = np.dtype(arrays[0].dtype.name)
        writer = _Writer(draft, arrays, source.levels, coding, dtype, values, coarser, signed, each)
        return writer.assist(until)


@contextmanager
def parallel(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` whose calls run in so many threads; what is left is given up when one of them fails."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


@dataclass(frozen=True)
class _Place:
    """A shard of a level: its key, the level's number, and the box that it holds of a frame."""

    key: str
    level: int
    frame: int | None
    box: Box


@dataclass(frozen=True)
class _Writer:
    """Writes the shards of all levels that the draft does not have."""

    draft: Draft
    arrays: tuple[zarr.Array[Any], ...]
    levels: tuple[Level, ...]
    coding: Coding
    dtype: np.dtype[Any]
    values: Values
    coarser: Coarser | None
    report: Report
    each: Callable[..., Iterator[Any]]

    def write(self, call: Call | None) -> int:
        """All of them; how many tiles were coded here."""
        missing = {place.key: place for place in self._all() if place.key not in self.draft.shards}
        if call is not None and len(missing) > 1:
            self.draft.ask({"program": _program(), "work": call.order})
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

    def _all(self) -> Iterator[_Place]:
        for number in range(len(self.levels)):
            yield from self.places(number)

    def _made(self, place: _Place) -> int:
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

    def places(self, number: int) -> Iterator[_Place]:
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
                yield _Place(object_key(array, key), number, frame, (z, y, x))

    def _block(self, place: _Place) -> Array:
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

    def _coded(self, place: _Place, block: Array) -> int:
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
            return _Coded.of(self.coding, part, chunk, exact)

        for one in self.each(code, tiles):
            coded.append(one)
            self._tell(len(coded))
        at = {index: one.data for index, one in zip(tiles, coded, strict=True)}
        content = shard_bytes([at.get(index) for index in np.ndindex(*grid)])
        moments = Moments() if number else Moments.of(block) if exact else _merged(coded)
        self.draft.add(
            place.key,
            content,
            tiles=len(tiles),
            moments=moments,
            squares=math.fsum(one.squares for one in coded),
            largest=max(one.largest for one in coded),
        )
        return len(tiles)

    def _tiles(self, place: _Place) -> int:
        chunk = self.arrays[place.level].chunks[-3:]
        return math.prod(-(-(axis.stop - axis.start) // c) for axis, c in zip(place.box, chunk, strict=True))


@dataclass(frozen=True)
class _Coded:
    """A tile as bytes; what it decodes to, and its errors."""

    data: bytes
    moments: Moments = field(default_factory=Moments)
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, coding: Coding, values: Array, chunk: Shape3, exact: bool) -> _Coded:
        """The part of a tile that lies within the array; `exact` spares its decoding."""
        data = coding.encoded(values, chunk)
        if exact:
            return cls(data)
        told = coding.decoded(data, values.shape, chunk, values.dtype)
        errors = np.subtract(told, values, dtype=np.float64).ravel()
        return cls(data, Moments.of(told), float(errors @ errors), float(np.abs(errors).max()))


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


def _merged(parts: Sequence[Shard] | Sequence[_Coded]) -> Moments:
    moments = Moments()
    for part in parts:
        moments = moments.merge(part.moments)
    return moments


def _group(draft: Draft, source: Volume, coding: Coding, dtype: np.dtype[Any]) -> zarr.Group:
    """The draft's group; a new one where no shard is whole."""
    if draft.shards:
        return zarr.open_group(draft.store, mode="r+", zarr_format=3)
    shutil.rmtree(draft.store, ignore_errors=True)
    stored = source.stored
    group = create_group(
        str(draft.store), stored.grid, _frames(stored), dtype, tiling=coding.tiling, codecs=coding.codecs
    )
    for path in [*draft.store.rglob("*"), draft.store, draft.folder]:
        sync(path)
    return group


def _copy_gaps(source: Volume, draft: Draft) -> None:
    """The source's own files, verified. Raises CorruptVolume, StorageFull and LeaseLost."""
    objects = {key: o for key, o in source.manifest.objects.items() if key.startswith(f"{GAPS}/")}
    Manifest(objects).verify(source.path)
    for key in objects:
        draft.write(key, (source.path / key).read_bytes())


def _still_true(warnings: Sequence[str], gaps: bool) -> Iterator[str]:
    """The source's warnings, but of gaps where they were filled."""
    return (said for said in warnings if gaps or not said.endswith(CURE_OF_GAPS))


def _frames(stored: StoredVolume) -> Frames | None:
    if len(stored.axes) == 3:
        return None
    axis: Any = stored.axes[0]
    return Frames(axis, stored.array_shape[0], stored.frame_step_s)


def _purpose(derivation: Derivation, coding: Coding, dtype: np.dtype[Any], versions: Sequence[str]) -> str:
    told = [FORMAT, _program(), asdict(derivation), coding.to_json(), dtype.str, *versions]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@cache
def _program() -> str:
    """sha-256 of numpy's version and all modules of the store, as this process found them."""
    found, root = hashlib.sha256(np.__version__.encode()), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()
