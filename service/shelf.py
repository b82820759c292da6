"""Opened volumes, so that a hundred slices of one scan do not open it a hundred times."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.slices import Window
from storage.records import VolumeRecord
from storage.volume import Volume

_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class OpenVolume:
    """A volume that can be read, and the window in which it looks well."""

    volume: Volume
    window: Window


class Shelf:
    """Keeps the volumes read last open. Safe to use from many threads."""

    def __init__(self, data_root: Path, *, size: int = 32) -> None:
        self._data_root, self._size = data_root, size
        self._open: OrderedDict[str, OpenVolume] = OrderedDict()
        self._lock = threading.Lock()

    def folder(self, record: VolumeRecord) -> Path:
        """Where a ready volume's OME-Zarr lies."""
        assert record.store is not None
        return self._data_root / record.store

    def take(self, record: VolumeRecord) -> OpenVolume:
        """A ready volume, opened now or before."""
        folder = self.folder(record)
        with self._lock:
            if str(folder) in self._open:
                self._open.move_to_end(str(folder))
                return self._open[str(folder)]
        assert record.stored is not None
        volume = Volume.open(folder, record.stored.digest)
        opened = OpenVolume(volume, default_window(volume))
        with self._lock:
            self._open[str(folder)] = opened
            while len(self._open) > self._size:
                self._open.popitem(last=False)
        return opened


def default_window(volume: Volume) -> Window:
    """The 1st to the 99th percentile of the coarsest level's three middle planes."""
    coarsest = len(volume.levels) - 1
    z, y, x = (extent // 2 for extent in volume.levels[coarsest].shape)
    planes = [
        volume.plane("z", z, level=coarsest).ravel(),
        volume.plane("y", y, level=coarsest).ravel(),
        volume.plane("x", x, level=coarsest).ravel(),
    ]
    low, high = np.percentile(np.concatenate(planes).astype(np.float64), _PERCENTILES)
    return Window(float(low), float(high))
