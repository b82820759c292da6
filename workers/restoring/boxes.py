"""The voxels and the gaps of a box of a volume, and the boxes by which a volume is read and written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.chunks import ChunkReader
from storage.derived import Box
from storage.errors import CorruptVolume
from storage.gaps import Gaps
from storage.layout import VIEWING
from storage.records import StoredVolume, VolumeRecord
from storage.volume import Volume
from workers.windows import Shape, shape_of

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Frame = int | None
"""Of a volume of four dimensions its number; None of one of three."""
Numbers = Mapping[str, float]
"""What is told of a restored box, by name: counts, sums and extremes, to be brought together over all."""


class Boxes:
    """Boxes of level 0 of a volume. An error of its bytes names it. For many threads."""

    def __init__(self, record: VolumeRecord, volume: Volume, cache_bytes: int) -> None:
        self._id = record.id
        self._reader = ChunkReader(volume.array(0), cache_bytes=cache_bytes, seals=volume.manifest.seals)
        self._gaps = volume.gaps()

    def values(self, frame: Frame, box: Box) -> Array:
        """(z, y, x). Raises CorruptVolume."""
        return self._read(self._reader, frame, box)

    def gaps(self, frame: Frame, box: Box) -> Bools:
        """Where nothing was measured. Raises CorruptVolume."""
        if self._gaps is None:
            return np.zeros(shape_of(box), np.bool_)
        return self._read(self._gaps, frame, box)

    def _read(self, source: ChunkReader | Gaps, frame: Frame, box: Box) -> Array:
        z, y, x = box
        start, stop = (z.start, y.start, x.start), (z.stop, y.stop, x.stop)
        lead = ((), ()) if frame is None else ((frame,), (frame + 1,))
        try:
            return source.box((*lead[0], *start), (*lead[1], *stop)).reshape(shape_of(box))
        except CorruptVolume as error:
            error.volume_id = self._id
            raise


def frames_of(stored: StoredVolume) -> list[Frame]:
    """The frames of a volume, each to be restored by itself."""
    return [None] if len(stored.array_shape) == 3 else list(range(stored.array_shape[0]))


def shards_of(shape: Shape) -> Iterator[Box]:
    """The boxes of a frame, in C order."""
    for corner in itertools.product(*(range(0, n, s) for n, s in zip(shape, VIEWING.shard, strict=True))):
        z, y, x = (
            slice(low, min(low + s, n)) for low, s, n in zip(corner, VIEWING.shard, shape, strict=True)
        )
        yield z, y, x
