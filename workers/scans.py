"""A stored volume as the mathematics sees it: a source of cubes, and what is known of it as a whole."""

from __future__ import annotations

from math import prod

import numpy as np

from models.intensities import IntensityStatistics
from models.types import Array, Int64, Size
from storage.cubes import CubeReader, ReadPlan, sides
from storage.layout import SAMPLING
from storage.records import Statistics, StoredVolume


class RecordedCubes:
    """A reader that remembers which boxes it gave; fits `models.types.CubeSource`."""

    def __init__(self, reader: CubeReader) -> None:
        self.reader = reader
        self._origins: dict[tuple[int, int, int], list[Int64]] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self.reader.shape

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return self.reader.channels

    def cubes(self, origins: Int64, size: Size) -> Array:
        """As the reader gives them."""
        self._origins.setdefault(sides(size), []).append(np.array(origins, np.int64))
        return self.reader.cubes(origins, size)

    def covered_voxels(self) -> int:
        """How many voxels of the volume lie in at least one of the boxes; exact, one chunk in memory."""
        plans = [
            ReadPlan.of(np.concatenate(origins), size, self.shape, SAMPLING.chunk)
            for size, origins in self._origins.items()
        ]
        places: dict[tuple[int, ...], list[tuple[ReadPlan, int]]] = {}
        for plan in plans:
            for i, chunk in enumerate(map(tuple, plan.chunks.tolist())):
                places.setdefault(chunk, []).append((plan, i))
        return sum(map(_covered, places.values()))


def _covered(places: list[tuple[ReadPlan, int]]) -> int:
    """Voxels of one chunk that lie in a piece; the chunk is the i-th of each plan."""
    seen = np.zeros(SAMPLING.chunk, bool)
    for plan, i in places:
        for piece in plan.pieces(i):
            seen[piece.source] = True
    return int(seen.sum())


def intensities(statistics: Statistics) -> IntensityStatistics:
    """The scan's statistics, in the method's words."""
    return IntensityStatistics(statistics.minimum, statistics.maximum, statistics.mean, statistics.std)


def channels_of(stored: StoredVolume) -> int:
    """Values per voxel: the length of the leading axis, if there is one."""
    return prod(stored.array_shape[:-3])


def level_bytes(stored: StoredVolume) -> int:
    """Level 0, decoded."""
    return prod(stored.array_shape) * np.dtype(stored.dtype).itemsize


def chunks_of(stored: StoredVolume) -> int:
    """Chunks of level 0."""
    grid = (-(-size // edge) for size, edge in zip(stored.grid.shape, SAMPLING.chunk, strict=True))
    return channels_of(stored) * prod(grid)
