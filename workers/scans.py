"""Stored volumes as the mathematics sees them: sources of cubes, and what is known of each as a whole."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from types import TracebackType

import numpy as np

from models.intensities import IntensityStatistics
from models.learning.preparation import PreparedScan, RawScan
from models.regressors.dense import whole
from models.types import Array, CubeSource, Int64, Size
from storage.cubes import CubeReader, ReadPlan, sides
from storage.errors import CorruptVolume
from storage.layout import SAMPLING
from storage.records import Statistics, StoredVolume, VolumeRecord
from storage.volume import Volume

OPEN_READERS = 16


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


class Readers:
    """Readers of many volumes, of which the last few are open; a context manager.

    So a cohort takes neither a thread nor a cache for each of its scans.
    """

    def __init__(self, cache_bytes: int, scheduler: str) -> None:
        self._cache_bytes, self._scheduler = cache_bytes // OPEN_READERS, scheduler
        self._open: OrderedDict[Volume, CubeReader] = OrderedDict()

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def of(self, volume: Volume) -> CubeReader:
        """A volume's reader, to be used before the next one is asked for."""
        if volume not in self._open:
            reader = volume.cube_reader(cache_bytes=self._cache_bytes, scheduler=self._scheduler)
            self._open[volume] = reader
        self._open.move_to_end(volume)
        if len(self._open) > OPEN_READERS:
            self._open.popitem(last=False)[1].close()
        return self._open[volume]


class StoredScan:
    """One volume of a cohort; fits `models.types.CubeSource`. An error of its bytes names it."""

    def __init__(self, record: VolumeRecord, volume: Volume, readers: Readers) -> None:
        self._record, self._volume, self._readers = record, volume, readers

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self._volume.stored.grid.shape

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return channels_of(self._volume.stored)

    def cubes(self, origins: Int64, size: Size) -> Array:
        """As the reader gives them. Raises CorruptVolume."""
        try:
            return self._readers.of(self._volume).cubes(origins, size)
        except CorruptVolume as error:
            error.volume_id = self._record.id
            raise


class HeldScan:
    """A prepared scan in memory; fits `models.types.CubeSource`, and gives the same bits as the scan.

    Raises SourceFailed, naming the slices, for what cannot be read or is not finite.
    """

    def __init__(self, scan: PreparedScan) -> None:
        self._voxels = whole(scan)
        self._background, self.value_range = scan.background, scan.value_range

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        _, z, y, x = self._voxels.shape
        return z, y, x

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return len(self._voxels)

    def cubes(self, origins: Int64, size: Size) -> Array:
        """See `CubeSource`."""
        box = np.array(sides(size))
        extent = np.array(self.shape)
        origins = np.asarray(origins, np.int64).reshape(-1, 3)
        out = np.full((len(origins), self.channels, *box), self._background, np.float32)
        low, high = np.maximum(origins, 0), np.minimum(origins + box, extent)
        for cube in np.flatnonzero((high > low).all(axis=1)).tolist():
            (z, y, x), (Z, Y, X) = low[cube].tolist(), high[cube].tolist()
            a, b, c = origins[cube].tolist()
            out[cube, :, z - a : Z - a, y - b : Y - b, x - c : X - c] = self._voxels[:, z:Z, y:Y, x:X]
        return out


def raw_scan(source: CubeSource, stored: StoredVolume, name: str = "") -> RawScan:
    """A scan with what its header says, for preparation; `name` is for messages."""
    grid = stored.grid
    modality = stored.metadata.get("Modality")
    return RawScan(
        source,
        intensities(stored.statistics),
        grid.spacing,
        None if grid.affine is None else grid.matrix,
        None if modality is None else str(modality),
        stored.statistics.replaced,
        name,
    )


def intensities(statistics: Statistics) -> IntensityStatistics:
    """The scan's statistics, in the method's words."""
    return IntensityStatistics(statistics.minimum, statistics.maximum, statistics.mean, statistics.std)


def channels_of(stored: StoredVolume) -> int:
    """Values per voxel: the length of the leading axis, if there is one."""
    return prod(stored.array_shape[:-3])


def level_bytes(stored: StoredVolume) -> int:
    """Level 0, decoded."""
    return prod(stored.array_shape) * np.dtype(stored.dtype).itemsize


def chunks_of(volume: Volume) -> int:
    """Chunks of level 0, however large its codec has them."""
    finest = volume.array(0)
    return prod(-(-size // edge) for size, edge in zip(finest.shape, finest.chunks, strict=True))
