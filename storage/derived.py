"""A volume made of another one, shard by shard, by any function that gives the values of a box.

What is in memory at a time is one shard, 64 x 256 x 256 voxels at most. A shard that is whole is never made
twice, whatever becomes of the attempt that made it (`storage.derived_draft`). Tiles of a shard are coded by
several threads, shards by several workers, wherever some are idle (`storage.derived_help`): the bytes are the
same. Statistics are those of what a reader decodes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from storage.derived_coding import PLAIN, Coding, framed, putt
from storage.derived_draft import Draft, Drafts, Shard
from storage.derived_writing import Box, Call, Coarser, Values, Writer, merged
from storage.disk import sync
from storage.gaps import NAME as GAPS
from storage.grid import Frames
from storage.ingest import CURE_OF_GAPS, Report, seal
from storage.jobs import Progress
from storage.layout import create_group, writable
from storage.manifest import Manifest
from storage.records import Derivation, StoredVolume
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

FORMAT = 2
"""Of drafts: raise it when what is written for the same purpose changes."""
LIBRARIES = ("constriction", "imagecodecs", "numcodecs", "numpy", "tensorly", "zarr", "zfpy")
"""Whose versions may decide what is written."""


@dataclass(frozen=True)
class Written:
    """A volume that is whole and sealed, and not published yet.

    `squares` and `largest` are the sum of squared errors and the largest error of level 0, against what it
    was made of; squares are in those of `report.unit_of` the source's range. `level_bytes` are the bytes of
    each level's shards; `made`, `helped` and `kept` count tiles that were coded now, by others that helped,
    and by earlier attempts.
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
        writer = Writer(draft, arrays, source, coding, dtype, values, coarser, report, each)
        made = writer.write(None if call is None or coarser is None else _signed(call))
    if keep_gaps and source.stored.gaps:
        _copy_gaps(source, draft)
    report(Progress("manifest"))
    finest = [draft.shards[place.key] for place in writer.places(0)]
    facts = replace(
        _facts(source.stored, finest, keep_gaps),
        array_shape=tuple(arrays[0].shape),
        dtype=dtype.name,
        derived=derivation,
    )
    with draft.in_hand():
        stored = seal(group, draft.store, replace(facts, warnings=(*facts.warnings, *warnings)))
    return Written(
        draft,
        stored,
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
    for draft, order in drafts.joined(lambda order: bool(order["program"] == _program())):
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
        writer = Writer(draft, arrays, source, coding, dtype, values, coarser, signed, each)
        return writer.assist(until)


@contextmanager
def parallel(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` whose calls run in so many threads; what is left is given up when one of them fails."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


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


def _facts(source: StoredVolume, finest: Sequence[Shard], gaps: bool) -> StoredVolume:
    """The source's, of what its shards hold now; `gaps` says whether those that it has are still there."""
    replaced = source.statistics.replaced if gaps else 0
    return replace(
        source,
        statistics=replace(merged(finest).statistics(replaced=0), replaced=replaced),
        warnings=tuple(_still_true(source.warnings, gaps)),
    )


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


def _signed(call: Call) -> Call:
    return Call({"program": _program(), "work": call.order}, call.ring)


def _program() -> str:
    """sha-256 of all that decides what is written: see `_fingerprint`."""
    return _PROGRAM


def _fingerprint() -> str:
    """Of all modules of the store, and of the libraries that code, as this process has loaded them."""
    found, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.update(f"{library} {version(library)}\0".encode())
    return found.hexdigest()


_PROGRAM = _fingerprint()
