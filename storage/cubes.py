"""Many small cubes or boxes from one Zarr array: each chunk that they touch is decoded once per call.

Dask schedules groups of chunks, never single cubes or chunks, and never enumerates the chunk grid: a plan
for cubes of an 8192^3 volume costs as much as for one of 256^3. See docs/adr/0003-reading-cubes.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.chunks import ChunkReader, Index, ReadCounts

Array = NDArray[Any]
Int64 = NDArray[np.int64]
Size = int | tuple[int, int, int]

CHUNKS_PER_TASK = 16
"""Fewest chunks worth a Dask task (a task costs about 0.2 ms, a chunk about 0.15 ms)."""
TASKS_PER_WORKER = 8


def sides(size: Size) -> tuple[int, int, int]:
    """The sides of a box; those of a cube are equal."""
    return (size, size, size) if isinstance(size, int) else size


class Piece(NamedTuple):
    """The part of one cube that lies in one chunk: which cube, where in it, where in the chunk."""

    cube: int
    target: tuple[slice, slice, slice]
    source: tuple[slice, slice, slice]


@dataclass(frozen=True)
class ReadPlan:
    """Which chunks hold which parts of which cubes. Rows are sorted by chunk.

    `chunks` (m, 3) are the distinct chunk indices; the pieces of chunk i are the rows
    `first[i] ... first[i + 1]` of `cube` (p,), `target`, `source` and `length` (p, 3).
    """

    chunks: Int64
    first: Int64
    cube: Int64
    target: Int64
    source: Int64
    length: Int64

    @classmethod
    def of(cls, origins: Int64, size: Size, shape: Index, chunk: Index) -> ReadPlan:
        """The plan for boxes of `size` with lowest corners `origins` (n, 3); spatial axes only."""
        extent, edge = np.array(shape, np.int64), np.array(chunk, np.int64)
        box = np.array(sides(size), np.int64)
        grid = -(-extent // edge)
        span = -(-(box - 1) // edge) + 1
        rows = []
        for step in product(*(range(int(count)) for count in span)):
            index = origins // edge + np.array(step, np.int64)
            low = np.maximum(origins, index * edge)
            high = np.minimum(np.minimum(origins + box, (index + 1) * edge), extent)
            inside = ((index >= 0) & (index < grid) & (high > low)).all(axis=1)
            cube = np.flatnonzero(inside)
            low, high, index = low[cube], high[cube], index[cube]
            rows.append(
                np.hstack([cube[:, None], index, low - origins[cube], low - index * edge, high - low])
            )
        table = np.concatenate(rows) if rows else np.empty((0, 13), np.int64)
        key = (table[:, 1] * grid[1] + table[:, 2]) * grid[2] + table[:, 3]
        table = table[np.argsort(key, kind="stable")]
        _, first = np.unique(np.sort(key), return_index=True)
        return cls(
            table[first, 1:4],
            np.append(first, len(table)),
            *(table[:, 0], table[:, 4:7], table[:, 7:10], table[:, 10:13]),
        )

    def only(self, group: Int64) -> ReadPlan:
        """The plan for some of its chunks, given by their numbers in it."""
        count = self.first[group + 1] - self.first[group]
        rows = np.concatenate([np.arange(self.first[i], self.first[i + 1]) for i in group])
        first = np.concatenate([[0], np.cumsum(count)])
        return ReadPlan(
            self.chunks[group],
            first,
            self.cube[rows],
            self.target[rows],
            self.source[rows],
            self.length[rows],
        )

    def pieces(self, i: int) -> Iterator[Piece]:
        """The pieces that lie in the i-th chunk."""
        rows = slice(int(self.first[i]), int(self.first[i + 1]))
        for cube, (tz, ty, tx), (sz, sy, sx), (dz, dy, dx) in zip(
            self.cube[rows].tolist(),
            self.target[rows].tolist(),
            self.source[rows].tolist(),
            self.length[rows].tolist(),
            strict=True,
        ):
            yield Piece(
                cube,
                (slice(tz, tz + dz), slice(ty, ty + dy), slice(tx, tx + dx)),
                (slice(sz, sz + dz), slice(sy, sy + dy), slice(sx, sx + dx)),
            )


class CubeReader:
    """A Zarr array as a source of cubes; fits `models.types.CubeSource`.

    `array` is `(z, y, x)` or `(c, z, y, x)`, where time counts as channels. `padding` is the value
    outside of the volume. `scheduler` is "threads", or the address of a dask.distributed scheduler,
    whose workers must reach the same store. Every chunk is verified (storage/chunks.py). Make it where
    it is used, after a fork: it owns threads.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        *,
        cache_bytes: int = 256 << 20,
        padding: float = 0,
        scheduler: str = "threads",
        workers: int | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> None:
        if array.ndim not in (3, 4):
            raise ValueError(f"cubes are cut from arrays with 3 or 4 axes, not {array.ndim}")
        self._chunks = ChunkReader(array, cache_bytes=cache_bytes, seals=seals)
        self._padding = padding
        self._scheduler = scheduler
        self._workers = workers or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._cluster: tuple[Any, Any] | None = None
        self._cubes = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self._chunks.shape[-3:]  # type: ignore[return-value]

    @property
    def channels(self) -> int:
        """Values per voxel: the length of the leading axis, or 1."""
        return self._chunks.shape[0] if len(self._chunks.shape) == 4 else 1

    @property
    def counts(self) -> ReadCounts:
        """Cubes, chunks and bytes since the reader was made (threads only: remote workers do not report)."""
        return replace(self._chunks.counts, cubes=self._cubes)

    def close(self) -> None:
        """End the reader's threads, or its connection to the cluster."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._cluster is not None:
            self._cluster[0].close()
            self._cluster = None

    def cubes(self, origins: Int64, size: Size) -> Array:
        """Cubes of edge `size`, or boxes of `size` (Z, Y, X); lowest corners `origins` (n, 3) in (z, y, x).

        Returns (n, channels, Z, Y, X) in the array's dtype; what lies outside is padding.
        Raises CorruptVolume where a chunk does not match its checksum.
        """
        origins = np.ascontiguousarray(origins, np.int64).reshape(-1, 3)
        out = np.full((len(origins), self.channels, *sides(size)), self._padding, self._chunks.array.dtype)
        plan = ReadPlan.of(origins, size, self.shape, self._chunks.chunk_shape[-3:])
        self._cubes += len(origins)
        if self._scheduler == "threads":
            self._read_by_threads(plan, out)
        else:
            self._read_by_cluster(plan, out)
        return out

    def _read_by_threads(self, plan: ReadPlan, out: Array) -> None:
        """Cached chunks first (reading may push them out), then the others in groups."""
        reader = self._chunks
        held = np.array([reader.cached(self._full(chunk)) for chunk in plan.chunks.tolist()], bool)
        fill(reader, plan, np.flatnonzero(held), out)
        groups = self._groups(np.flatnonzero(~held))
        if len(groups) < 2:
            for group in groups:
                fill(reader, plan, group, out)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers)
        _computed(reader, plan, groups, out, self._pool)

    def _read_by_cluster(self, plan: ReadPlan, out: Array) -> None:
        client, seals = self._connected()
        parts = [plan.only(group) for group in self._groups(np.arange(len(plan.chunks)))]
        futures = [client.submit(cut, self._chunks.array, part, seals, pure=False) for part in parts]
        for pieces in client.gather(futures):
            for cube, channels, target, voxels in pieces:
                out[(cube, channels, *target)] = voxels

    def _connected(self) -> tuple[Any, Any]:
        """A client of the cluster, and the volume's seals there; both last as long as the reader."""
        if self._cluster is None:
            from distributed import Client  # noqa: PLC0415 - slow to import, and only used with a cluster

            client = Client(self._scheduler, set_as_default=False)
            (seals,) = client.scatter([self._chunks.seals], hash=False)
            self._cluster = client, seals
        return self._cluster

    def _groups(self, chunks: Int64) -> list[Int64]:
        """About eight groups per worker, so that the last one to finish does not keep the others waiting."""
        count = min(TASKS_PER_WORKER * self._workers, -(-len(chunks) // CHUNKS_PER_TASK))
        return np.array_split(chunks, count) if count else []

    def _full(self, chunk: list[int]) -> Index:
        """The index of the first channel's chunk."""
        return (0, *chunk) if len(self._chunks.shape) == 4 else tuple(chunk)


def _computed(
    reader: ChunkReader, plan: ReadPlan, groups: Sequence[Int64], out: Array, pool: ThreadPoolExecutor
) -> None:
    """Fill `out` from groups of chunks, by Dask's threaded scheduler."""
    from dask.base import compute  # noqa: PLC0415 - who reads no cubes does without: the service
    from dask.delayed import delayed  # noqa: PLC0415
    from dask.threaded import get  # noqa: PLC0415

    tasks = [delayed(fill, pure=False)(reader, plan, group, out) for group in groups]
    compute(*tasks, scheduler=get, pool=pool, traverse=False)


def fill(reader: ChunkReader, plan: ReadPlan, group: Int64, out: Array) -> None:
    """Copy the pieces that lie in the chunks `group` of the plan straight to their places in `out`."""
    for cube, channels, target, voxels in read_pieces(reader, plan, group):
        out[(cube, channels, *target)] = voxels


def cut(
    array: zarr.Array[Any], plan: ReadPlan, seals: Mapping[str, int] | None
) -> list[tuple[int, slice, tuple[slice, slice, slice], Array]]:
    """The plan's pieces as copies, to be sent over a network."""
    reader, everything = ChunkReader(array, seals=seals), np.arange(len(plan.chunks))
    return [
        (cube, c, target, voxels.copy()) for cube, c, target, voxels in read_pieces(reader, plan, everything)
    ]


def read_pieces(
    reader: ChunkReader, plan: ReadPlan, group: Int64
) -> Iterator[tuple[int, slice, tuple[slice, slice, slice], Array]]:
    """(cube, channels, place in the cube, voxels) of each piece in these chunks; each chunk read once."""
    depth = len(reader.shape) - 3
    layers = range(reader.grid_shape[0]) if depth else (0,)
    for i in group.tolist():
        index = plan.chunks[i].tolist()
        for layer in layers:
            if depth:
                low = layer * reader.chunk_shape[0]
                channels = slice(low, min(low + reader.chunk_shape[0], reader.shape[0]))
                chunk = reader.chunk((layer, *index))[: channels.stop - low]
            else:
                channels = slice(0, 1)
                chunk = reader.chunk(tuple(index))[None]
            for cube, target, source in plan.pieces(i):
                yield cube, channels, target, chunk[(slice(None), *source)]
