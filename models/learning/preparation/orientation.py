"""How a scan lies: its axes permuted and flipped, so that they grow to the right, the front and the head.

The affine maps voxel indices (i, j, k) = (x, y, z) to RAS+ millimetres, as in NIfTI-1 (nifti1.h, method 3).
Each axis is taken for the anatomical one that it is nearest to: of the six assignments the one with the
largest sum of cosines. Oblique scans are not rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from models.learning.preparation.views import Sides, sides_of
from models.types import Array, CubeSource, Int64, Size

T = TypeVar("T")


@dataclass(frozen=True)
class Orientation:
    """`axes[a]` is the stored axis that becomes axis a of (z, y, x), `flipped[a]` whether it is flipped."""

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def of(cls, affine: Float64[Array, "4 4"]) -> Orientation:
        """What brings a scan with this affine to growing (z, y, x) = (S, A, R)."""
        columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        cosines = columns[::-1, ::-1]  # [a, s]: of anatomical axis a and stored axis s, both in (z, y, x)
        axes = max(permutations(range(3)), key=lambda stored: round(float(_along(cosines, stored).sum()), 9))
        return cls(axes, tuple(bool(cosines[a, s] < 0) for a, s in enumerate(axes)))  # type: ignore[arg-type]

    @property
    def is_identity(self) -> bool:
        """Whether a scan lies so already."""
        return self == Orientation()

    def stored(self, places: Float64[Array, "m 3"], shape: tuple[int, int, int]) -> Float64[Array, "m 3"]:
        """Places in the scan as it is stored, of places in the new axes, whose `shape` is (z, y, x)."""
        turned = np.where(self.flipped, np.array(shape) - 1 - places, places)
        return turned[:, np.argsort(self.axes)]

    def arranged(self, stored: tuple[T, T, T]) -> tuple[T, T, T]:
        """One value for each stored axis, in the order of the new ones."""
        z, y, x = (stored[axis] for axis in self.axes)
        return z, y, x


class Oriented:
    """A volume with its axes permuted and flipped. Boxes are forwarded, with nothing around them."""

    def __init__(self, source: CubeSource, orientation: Orientation) -> None:
        self._source, self._orientation = source, orientation

    @property
    def shape(self) -> Sides:
        """(z, y, x)."""
        return self._orientation.arranged(self._source.shape)

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return self._source.channels

    def cubes(self, origins: Int64, size: Size) -> Array:
        """See `CubeSource`: in the source's own type."""
        sides = sides_of(size)
        origins = np.asarray(origins, np.int64).reshape(-1, 3)
        turned = np.where(self._orientation.flipped, np.array(self.shape) - sides - origins, origins)
        stored = np.argsort(self._orientation.axes)
        z, y, x = (sides[axis] for axis in stored)
        boxes = self._source.cubes(np.ascontiguousarray(turned[:, stored]), (z, y, x))
        arranged = boxes.transpose(0, 1, *(2 + axis for axis in self._orientation.axes))
        steps = tuple(slice(None, None, -1 if turned else 1) for turned in self._orientation.flipped)
        return np.ascontiguousarray(arranged[:, :, *steps])


def _along(cosines: Float64[Array, "3 3"], stored: tuple[int, ...]) -> Float64[Array, " 3"]:
    return np.abs(cosines[np.arange(3), list(stored)])
