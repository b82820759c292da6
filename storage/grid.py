"""Where voxels are: shape, spacing, the affine from indices to RAS+ millimetres, and the fourth axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.errors import InvalidScan

Affine = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid of voxels.

    `shape` is `(z, y, x)`, the order of every array here. `affine` (4x4, row-major) maps the voxel index
    `(i, j, k) = (x, y, z)` to RAS+ millimetres, as in NIfTI-1 (nifti1.h, "method 3"). `spacing` is
    `(z, y, x)` in millimetres. Either is None where the scan does not say: then nothing in mm may be
    reported.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    affine: Affine | None = None

    @classmethod
    def from_affine(cls, shape: tuple[int, int, int], affine: ArrayLike) -> VoxelGrid:
        """A grid whose spacing is the length of the affine's columns.

        Raises InvalidScan when the affine is singular or not finite.
        """
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise InvalidScan("the affine from voxels to millimetres is not a finite 4x4 matrix")
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
        volume = abs(float(np.linalg.det(matrix[:3, :3])))
        if sizes.min() <= 0 or volume <= 1e-6 * float(np.prod(sizes)):
            raise InvalidScan("the affine from voxels to millimetres is singular: its axes coincide")
        rows = tuple(tuple(float(value) for value in row) for row in matrix)
        x, y, z = (float(size) for size in sizes)
        return cls(shape, (z, y, x), rows)  # type: ignore[arg-type]

    @property
    def voxels(self) -> int:
        """How many voxels; exact, in Python integers."""
        return math.prod(self.shape)

    @property
    def orientation(self) -> str | None:
        """The anatomical direction in which each of (x, y, z) grows: `RAS`, `LPS`, ... (nearest axes)."""
        if self.affine is None:
            return None
        from nibabel.orientations import aff2axcodes  # noqa: PLC0415 - nibabel is slow to import

        return "".join(aff2axcodes(self.matrix))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as an array. Raises ValueError where it is unknown."""
        if self.affine is None:
            raise ValueError("this grid has no affine")
        return np.array(self.affine)

    def voxel_to_world(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """RAS+ mm (n, 3) of voxel indices (n, 3) in array order (z, y, x)."""
        indices = np.asarray(voxels, dtype=np.float64)[:, ::-1]
        matrix = self.matrix
        return indices @ matrix[:3, :3].T + matrix[:3, 3]

    def world_to_voxel(self, points: ArrayLike) -> NDArray[np.float64]:
        """Fractional voxel indices (n, 3) in array order (z, y, x) of RAS+ mm points (n, 3)."""
        matrix = self.matrix
        indices = np.linalg.solve(matrix[:3, :3], (np.asarray(points, dtype=np.float64) - matrix[:3, 3]).T).T
        return np.ascontiguousarray(indices[:, ::-1])

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `from_json` gives the same grid back to the last bit."""
        return {"shape": self.shape, "spacing": self.spacing, "affine": self.affine}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> VoxelGrid:
        """The grid that `to_json` described."""
        spacing, affine = record["spacing"], record["affine"]
        return cls(
            tuple(record["shape"]),
            None if spacing is None else tuple(spacing),
            None if affine is None else tuple(tuple(row) for row in affine),
        )


@dataclass(frozen=True)
class Frames:
    """The fourth axis of a 4-D scan: time (`t`, with a step in seconds when known) or channels (`c`)."""

    axis: Literal["t", "c"]
    count: int
    step_s: float | None = None
