"""Boxes of raw intensities: read, checked, and kept while there is room, since weights change more often."""

from __future__ import annotations

import numpy as np

from models.cpic.geometry import Sides
from models.errors import NonFiniteSample, SourceFailed
from models.types import Array, CubeSource, Int64

LAST = np.iinfo(np.int64).max


class Rows:
    """Distinct keys, each with the number of its row in a table that grows at its end."""

    def __init__(self) -> None:
        self._keys = np.array([LAST])  # ascending; the last one is no key, so that every search ends at one
        self._rows = np.array([-1])

    def __len__(self) -> int:
        return len(self._keys) - 1

    def find(self, keys: Int64) -> Int64:
        """The rows of keys; -1 for those that are not there."""
        at = self._keys.searchsorted(keys)
        return np.where(self._keys[at] == keys, self._rows[at], -1)

    def add(self, keys: Int64) -> None:
        """Give distinct new keys the next rows, in their order."""
        rows = np.arange(len(self), len(self) + len(keys))
        order = np.argsort(keys)
        at = self._keys.searchsorted(keys[order])
        self._keys = np.insert(self._keys, at, keys[order])
        self._rows = np.insert(self._rows, at, rows[order])


class RawBoxes:
    """A source of boxes that are finite and of the right shape, kept up to `keep_bytes`.

    Kept are all boxes in the source's own type; when they would take more than there is room for, all are
    dropped.
    """

    def __init__(self, source: CubeSource, keep_bytes: int = 0) -> None:
        self.source = source
        self._keep_bytes = keep_bytes
        self._kept: dict[Sides, tuple[Rows, Array]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return sum(boxes.nbytes for _, boxes in self._kept.values())

    def read(self, corners: Int64, sides: Sides) -> Array:
        """Boxes (n, c, Z, Y, X) of `sides` with distinct lowest corners (n, 3), outside of the volume too.

        Raises SourceFailed, and NonFiniteSample, naming the voxel.
        """
        if self._keep_bytes == 0:
            return self._read(corners, sides)
        keys = self._keys(corners, sides)
        if sides not in self._kept:
            boxes = self._read(corners, sides)
            self._keep(keys, boxes, sides)
            return boxes
        rows, kept = self._kept[sides]
        found = rows.find(keys)
        boxes, new = kept[found], found < 0
        if new.any():
            boxes[new] = self._read(corners[new], sides)
            self._keep(keys[new], boxes[new], sides)
        return boxes

    def _keep(self, keys: Int64, boxes: Array, sides: Sides) -> None:
        if self.nbytes + boxes.nbytes > self._keep_bytes:
            self._kept.clear()
        if boxes.nbytes <= self._keep_bytes:
            rows, kept = self._kept.get(sides, (Rows(), boxes[:0]))
            rows.add(keys)
            self._kept[sides] = rows, np.concatenate([kept, boxes])

    def _keys(self, corners: Int64, sides: Sides) -> Int64:
        """One number for each corner of a box that meets the volume."""
        z, y, x = (corners + sides).T
        _, Y, X = np.array(self.source.shape) + 2 * np.array(sides)
        return np.asarray((z * Y + y) * X + x)

    def _read(self, corners: Int64, sides: Sides) -> Array:
        """Read boxes from the source, and check them."""
        what = f"{len(corners)} boxes of {sides} voxels at {plain(corners[0])} ... {plain(corners[-1])}"
        try:
            boxes = np.asarray(self.source.cubes(corners, sides))
        except Exception as error:
            raise SourceFailed(f"reading {what}: {type(error).__name__}: {error}") from error
        expected = (len(corners), self.source.channels, *sides)
        if boxes.shape != expected:
            raise SourceFailed(f"reading {what}: shape {boxes.shape} came back, not {expected}")
        if boxes.dtype.kind not in "biuf":
            raise SourceFailed(f"reading {what}: values of type {boxes.dtype} came back, not real numbers")
        if boxes.dtype.kind == "f" and not (finite := np.isfinite(boxes)).all():
            n, c, *offset = np.unravel_index(int(np.argmin(finite)), boxes.shape)
            raise NonFiniteSample(plain(corners[n] + np.array(offset)), float(boxes[(n, c, *offset)]))
        return boxes


def plain(index: Int64) -> tuple[int, ...]:
    """An index as a tuple of plain integers."""
    return tuple(index.tolist())
