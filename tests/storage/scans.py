"""A scan made of an array, for tests of what comes after the readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.grid import Frames, VoxelGrid
from storage.readers.base import ScanHeader, Slab

OBLIQUE = np.array([[-1.9, 0.2, 0.1, 90], [0.1, 1.2, -0.4, -126], [0.3, 0.5, 3.0, -72], [0, 0, 0, 1]])


class ArrayScan:
    """`voxels` (z, y, x) or (frames, z, y, x). `fail_after` slabs it breaks off with `error`."""

    def __init__(
        self,
        voxels: NDArray[Any],
        *,
        affine: NDArray[Any] | None = OBLIQUE,
        axis: Any = "t",
        fail_after: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.voxels = voxels
        shape = voxels.shape[-3:]
        grid = VoxelGrid(shape) if affine is None else VoxelGrid.from_affine(shape, affine)
        frames = Frames(axis, len(voxels), 2.0 if axis == "t" else None) if voxels.ndim == 4 else None
        self.header = ScanHeader("test", grid, voxels.dtype, frames, {"modality": "MR"})
        self.warnings: tuple[str, ...] = ("made by a test",)
        self.fail_after, self.error = fail_after, error
        self.slabs_given = 0

    def slabs(self, depth: int) -> Iterator[Slab]:
        for number, frame in enumerate(self.voxels if self.voxels.ndim == 4 else self.voxels[None]):
            for start in range(0, len(frame), depth):
                if self.slabs_given == self.fail_after:
                    if self.error:
                        raise self.error
                    return
                self.slabs_given += 1
                yield Slab(number, start, frame[start : start + depth])

    def close(self) -> None:
        return None

    def __enter__(self) -> ArrayScan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
