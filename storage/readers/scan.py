"""What every opened scan shares: header, warnings, closing, and cutting planes into slabs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np

from storage.errors import InvalidScan, ScanTooLarge
from storage.readers.base import Limits, ScanHeader, Slab, Voxels


class OpenScan(ABC):
    """A scan whose header is known. `resources` are closed with it."""

    def __init__(self, header: ScanHeader, warnings: Iterable[str], resources: ExitStack) -> None:
        self._header = header
        self._warnings = list(warnings)
        self._resources = resources

    @property
    def header(self) -> ScanHeader:
        """The scan's header."""
        return self._header

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know, in sentences; complete only after the last slab."""
        return tuple(dict.fromkeys(self._warnings))

    @abstractmethod
    def slabs(self, depth: int) -> Iterator[Slab]:
        """Every voxel once, ordered by frame, then z, at most `depth` planes at a time."""

    def close(self) -> None:
        """Let go of the files."""
        self._resources.close()

    def __enter__(self) -> Self:
        """The scan itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class FileScan(OpenScan):
    """A scan that lies in one file, which stays open as long as the scan."""

    def __init__(self, path: Path, header: ScanHeader, warnings: Iterable[str]) -> None:
        resources = ExitStack()
        self._file = resources.enter_context(path.open("rb"))
        super().__init__(header, warnings, resources)


def slab_ranges(frames: int, planes: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """(frame, start, stop) of every slab, ordered by frame, then z."""
    for frame in range(frames):
        for start in range(0, planes, depth):
            yield frame, start, min(start + depth, planes)


def stack(planes: Iterator[Voxels], frames: int, count: int, depth: int) -> Iterator[Slab]:
    """Slabs of planes (y, x) that arrive ordered by frame, then z: `count` planes in each frame."""
    for frame, start, stop in slab_ranges(frames, count, depth):
        yield Slab(frame, start, np.stack(list(islice(planes, stop - start))))


def check_size(shape: tuple[int, ...], frames: int, itemsize: int, limits: Limits) -> None:
    """Refuse a scan of (z, y, x) `shape` before anything is allocated. Python integers: nothing overflows.

    Raises InvalidScan where there is no voxel, ScanTooLarge where a limit is exceeded.
    """
    if min(shape) <= 0 or frames <= 0:
        raise InvalidScan(
            f"no voxels: the header declares {' x '.join(str(size) for size in shape)} (z, y, x)"
        )
    if frames > limits.frames or frames * shape[0] > limits.planes:
        raise InvalidScan(
            f"{frames} frames of {shape[0]} planes; at most {limits.frames} frames, and {limits.planes} "
            "planes altogether, are read"
        )
    declared = math.prod(shape) * frames * itemsize
    if declared > limits.decoded_bytes:
        raise ScanTooLarge("declared size of the scan", declared, limits.decoded_bytes)
    plane = shape[1] * shape[2] * itemsize
    if plane > limits.plane_bytes:
        raise ScanTooLarge("declared size of one plane", plane, limits.plane_bytes)
