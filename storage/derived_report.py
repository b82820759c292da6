"""How well a derived volume's voxels are those of its source: of what readers decode, box by box.

PSNR, its peak, SSIM and the largest error are those of `storage.compressors.report`, of level 0 with all its
frames; nothing but a box of each volume is in memory. A plane that is too large for that is read in windows
that overlap by what SSIM's own windows reach beyond them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from storage.chunks import Array, ChunkReader
from storage.compressors.report import TAPS, psnr_of, squared, ssim_map, unit_of
from storage.errors import CorruptVolume, StorageError
from storage.ingest import Report
from storage.jobs import Progress
from storage.layout import Shape3
from storage.volume import Volume

PLANES, SIDE = 64, 512
"""A box has so many planes, and so many voxels along each side of a plane, at most."""


@dataclass(frozen=True)
class Quality:
    """`psnr` is in dB for the peak maximum - minimum of the source, and infinite where nothing changed."""

    peak: float
    psnr: float
    ssim: float
    max_error: float


def measured(source: Volume, made: Volume, report: Report = lambda progress: None) -> Quality:
    """Read all of both volumes, of one shape. Raises CorruptVolume for the source, and StorageError where
    what was made of it cannot be read back.
    """
    peak = source.stored.statistics.range
    unit = unit_of(peak)
    shape = source.stored.grid.shape
    boxes = list(_boxes(shape))
    frames = source.stored.array_shape[0] if len(source.stored.axes) == 4 else None
    squares, largest, similar = 0.0, 0.0, []
    ours, others = LevelReader(source), LevelReader(made)
    done, total = 0, len(boxes) * (frames or 1)
    for frame in range(frames) if frames is not None else [None]:
        sums, counts = np.zeros(shape[0]), np.zeros(shape[0])
        for box in boxes:
            report(Progress("measuring", done, total, "boxes"))
            values, told = ours.box(0, frame, box.slices), _written(others, frame, box.slices)
            for number, (own, other) in enumerate(zip(values, told, strict=True), box.slices[0].start):
                errors = np.subtract(other, own, dtype=np.float64)
                index = ssim_map(own, other, peak)
                sums[number] += index.sum()
                counts[number] += index.size
                fresh = errors[box.fresh]
                squares += squared(fresh, unit)
                largest = max(largest, float(np.abs(fresh).max()))
            done += 1
        similar.append(float((sums / counts).mean()))
    voxels = source.stored.grid.voxels * (frames or 1)
    return Quality(peak, psnr_of(squares / voxels, peak / unit), float(np.mean(similar)), largest)


class LevelReader:
    """Boxes of all levels of a volume, every chunk verified; some of the decoded chunks are kept."""

    def __init__(self, volume: Volume, cache_bytes: int = 0) -> None:
        seals = volume.manifest.seals
        self._readers = [
            ChunkReader(volume.array(n), cache_bytes=cache_bytes, seals=seals)
            for n in range(len(volume.levels))
        ]

    def box(self, level: int, frame: int | None, box: tuple[slice, slice, slice]) -> Array:
        """The voxels (z, y, x) of a box of a frame; None where there are no frames. Raises CorruptVolume."""
        start, stop = (tuple(axis.start for axis in box), tuple(axis.stop for axis in box))
        if frame is None:
            return self._readers[level].box(start, stop)
        voxels: Array = self._readers[level].box((frame, *start), (frame + 1, *stop))[0]
        return voxels


def _written(reader: LevelReader, frame: int | None, box: tuple[slice, slice, slice]) -> Array:
    try:
        return reader.box(0, frame, box)
    except CorruptVolume as error:
        raise StorageError(f"what was just written cannot be read back: {error}; try again") from error


@dataclass(frozen=True)
class _Window:
    """A box, and of its planes the part that no box before it had."""

    slices: tuple[slice, slice, slice]
    fresh: tuple[slice, slice]


def _boxes(shape: Shape3) -> Iterator[_Window]:
    depth, height, width = shape
    planes = [slice(start, min(start + PLANES, depth)) for start in range(0, depth, PLANES)]
    for z, (y, top), (x, left) in itertools.product(planes, _windows(height), _windows(width)):
        yield _Window((z, y, x), (slice(top, None), slice(left, None)))


def _windows(side: int) -> list[tuple[slice, int]]:
    """Windows of a side, and how many voxels of each the one before it had."""
    overlap = TAPS - 1
    if side <= SIDE:
        return [(slice(0, side), 0)]
    starts = range(0, side - overlap, SIDE - overlap)
    return [(slice(start, min(start + SIDE, side)), overlap if start else 0) for start in starts]
