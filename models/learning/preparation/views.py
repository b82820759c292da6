"""Views of volumes through boxes: what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from models.types import Array, Int64, Size

Sides = tuple[int, int, int]


def sides_of(size: Size) -> Sides:
    """The sides of a box; those of a cube are equal."""
    return (size, size, size) if isinstance(size, int) else size


class View(ABC):
    """A volume made of another when it is looked at: float32, `background` outside of [low, high) of it.

    `low` and `high` (3,) lie within the view's shape. What is made, `_made`, may be anything outside.
    """

    def __init__(self, shape: Sides, channels: int, low: Int64, high: Int64, background: float) -> None:
        self._shape, self._channels = shape, channels
        self._low, self._high, self._background = low, high, np.float32(background)

    @property
    def shape(self) -> Sides:
        """(z, y, x)."""
        return self._shape

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return self._channels

    def cubes(self, origins: Int64, size: Size) -> Float32[Array, "n c z y x"]:
        """See `CubeSource`. One read of the volume beneath, of boxes that are not all background."""
        sides = sides_of(size)
        origins = np.asarray(origins, np.int64).reshape(-1, 3)
        met = ((origins + sides > self._low) & (origins < self._high)).all(axis=1)
        if met.all() and len(origins):
            return self._within(self._made(origins, sides), origins)
        boxes = np.full((len(origins), self.channels, *sides), self._background)
        if met.any():
            boxes[met] = self._within(self._made(origins[met], sides), origins[met])
        return boxes

    @abstractmethod
    def _made(self, origins: Int64, sides: Sides) -> Float32[Array, "n c z y x"]:
        """Boxes that all meet [low, high), in memory of their own."""

    def _within(self, boxes: Float32[Array, "n c z y x"], origins: Int64) -> Float32[Array, "n c z y x"]:
        """The boxes, with background where they reach out of [low, high)."""
        sides = boxes.shape[2:]
        out = np.flatnonzero(((origins < self._low) | (origins + sides > self._high)).any(axis=1))
        if len(out):
            z, y, x = (self._inside(origins[out], axis, side) for axis, side in enumerate(sides))
            inside = z[:, None, :, None, None] & y[:, None, None, :, None] & x[:, None, None, None, :]
            boxes[out] = np.where(inside, boxes[out], self._background)
        return boxes

    def _inside(self, origins: Int64, axis: int, side: int) -> NDArray[np.bool_]:
        """Which voxels along an axis of boxes (n, 3) are in [low, high): (n, side)."""
        at = origins[:, axis, None] + np.arange(side)
        return np.asarray((at >= self._low[axis]) & (at < self._high[axis]))
