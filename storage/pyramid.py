"""Coarser levels of a volume, one small block in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.chunks import ChunkReader
from storage.layout import Level, Shape3, writable

Array = NDArray[Any]
PLANES = 8
"""Planes of the coarser level made at a time: bounds the float64 copy of their source."""


def build_pyramid(group: zarr.Group, levels: tuple[Level, ...], report: Callable[[int, int], None]) -> None:
    """Fill the levels 1, 2, ... of a group from its level 0, by means of the voxels that each one spans.

    `report(done, total)` counts shards. Memory is that of one shard and of PLANES planes of its source,
    whatever the size of the volume.
    """
    jobs = [
        (finer, coarser, number, frame, corner)
        for number, (finer, coarser) in enumerate(itertools.pairwise(levels), start=1)
        for frame in range(_frames(group))
        for corner in _corners(coarser)
    ]
    for done, (finer, coarser, number, frame, corner) in enumerate(jobs):
        report(done, len(jobs))
        source, target = writable(group, number - 1), writable(group, number)
        stop = tuple(
            min(c + s, n) for c, s, n in zip(corner, coarser.tiling.shard, coarser.shape, strict=True)
        )
        block = coarser_box(source, frame, finer, coarser, corner, stop)
        place: Any = tuple(slice(a, b) for a, b in zip(corner, stop, strict=True))
        target[place if target.ndim == 3 else (frame, *place)] = block


def coarser_box(
    source: zarr.Array[Any],
    frame: int,
    finer: Level,
    coarser: Level,
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> Array:
    """The voxels `start:stop` (z, y, x) of a level, by means of `source`, the array of the next finer one."""
    block = np.empty([b - a for a, b in zip(start, stop, strict=True)], source.dtype)
    for low in range(start[0], stop[0], PLANES):
        high = min(low + PLANES, stop[0])
        voxels = _source(source, frame, finer, coarser, (low, *start[1:]), (high, *stop[1:]))
        block[low - start[0] : high - start[0]] = downsample(voxels, _step(finer, coarser))
    return block


def downsample(voxels: Array, step: Shape3) -> Array:
    """Means over blocks of `step` voxels (1 or 2 per axis), in float64; integers are rounded half to even.

    A last odd voxel stands for the missing one beside it.
    """
    odd = [(0, -n % s) for n, s in zip(voxels.shape, step, strict=True)]
    even = np.pad(voxels, odd, mode="edge") if np.any(odd) else voxels
    pairs = [part for n, s in zip(even.shape, step, strict=True) for part in (n // s, s)]
    mean: Array = even.reshape(pairs).mean(axis=(1, 3, 5), dtype=np.float64)
    return (
        np.rint(mean, out=mean).astype(voxels.dtype)
        if voxels.dtype.kind in "iu"
        else mean.astype(voxels.dtype)
    )


def _source(
    array: zarr.Array[Any],
    frame: int,
    finer: Level,
    coarser: Level,
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> Array:
    """The voxels of the finer level that the box `start:stop` of the coarser one spans."""
    step = _step(finer, coarser)
    low = tuple(a * s for a, s in zip(start, step, strict=True))
    high = tuple(min(b * s, n) for b, s, n in zip(stop, step, finer.shape, strict=True))
    reader = ChunkReader(array)
    return reader.box(low, high) if array.ndim == 3 else reader.box((frame, *low), (frame + 1, *high))[0]


def _step(finer: Level, coarser: Level) -> Shape3:
    z, y, x = (b // a for a, b in zip(finer.factor, coarser.factor, strict=True))
    return z, y, x


def _corners(level: Level) -> Iterator[tuple[int, ...]]:
    """Lowest corners of the level's shards."""
    return itertools.product(*(range(0, n, s) for n, s in zip(level.shape, level.tiling.shard, strict=True)))


def _frames(group: zarr.Group) -> int:
    array = writable(group, 0)
    return int(array.shape[0]) if array.ndim == 4 else 1
