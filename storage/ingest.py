"""A scan's slabs become a volume: an OME-Zarr group with pyramid, statistics, manifest and digest.

Memory is bounded by one slab, whatever the size of the scan. Nothing stands at the destination unless
everything went well; who publishes it (a row in the catalogue) decides when it exists.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.chunks import ChunkReader
from storage.disk import DISK_FULL, sync
from storage.errors import InvalidScan, StorageFull
from storage.gaps import NAME as GAPS
from storage.gaps import create_gaps
from storage.jobs import Progress
from storage.layout import SAMPLING, axis_names, create_group, plan_levels, writable
from storage.manifest import Manifest
from storage.pyramid import build_pyramid
from storage.readers.base import Scan, ScanHeader, Slab
from storage.records import Statistics, StoredVolume
from storage.shards import record_checksums

Array = NDArray[Any]
Report = Callable[[Progress], None]
HUGE = 1e30
"""Magnitudes beyond this are no physical measurement: they are kept, and warned about."""
LARGEST = float(np.finfo(np.float32).max)
"""Magnitudes beyond this count as infinite, also in float64: their squares must not overflow."""
BLOCK = 1 << 20
CURE_OF_GAPS = "the job complete fills them by what is around them"
"""How a warning of voxels that were never measured ends."""
BEGUN = ".partial"
"""Ends the name of what zarr is writing, which stays there when it is killed."""


def ingest(scan: Scan, destination: Path, *, report: Report = lambda progress: None) -> StoredVolume:
    """Write the scan to `destination`, which must not exist, and return the volume's facts.

    NaN and infinite voxels are replaced by the scan's smallest finite value, counted, warned about, and
    marked (storage/gaps.py).
    `report` may raise, to cancel. Raises InvalidScan for a scan without one finite voxel, StorageFull,
    and whatever the scan's reader raises; after any error the destination is gone.
    """
    try:
        return _ingest(scan, destination, report)
    except BaseException as error:
        shutil.rmtree(destination, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise StorageFull(f"the volume could not be written: {error.strerror}") from error
        raise


def _ingest(scan: Scan, destination: Path, report: Report) -> StoredVolume:
    header = scan.header
    group = create_group(str(destination), header.grid, header.frames, header.dtype)
    finest = writable(group, 0)
    moments, damaged = _write_slabs(scan, finest, report)
    if moments.count == 0:
        raise InvalidScan("the scan holds no finite voxel: all are NaN or infinite")
    if damaged:
        gaps = create_gaps(group, axis_names(header.frames))
        for slab in damaged:
            _replace_non_finite(finest, gaps, slab, moments.minimum)
    if header.instances is not None:
        header.instances.write(destination)
    levels = plan_levels(header.grid)
    build_pyramid(group, levels, lambda done, total: report(Progress("pyramid", done, total, "shards")))
    report(Progress("manifest"))
    statistics = moments.statistics(replaced=sum(slab.count for slab in damaged))
    facts = StoredVolume(
        grid=header.grid,
        axes=axis_names(header.frames),
        array_shape=tuple(finest.shape),
        dtype=header.dtype.name,
        levels=len(levels),
        digest="",
        statistics=statistics,
        stored_bytes=0,
        source_format=header.format,
        frame_step_s=header.frames.step_s if header.frames else None,
        warnings=(*scan.warnings, *_warnings(statistics)),
        metadata=header.metadata,
    )
    return seal(group, destination, facts)


def seal(group: zarr.Group, folder: Path, facts: StoredVolume) -> StoredVolume:
    """Write the facts, the chunks' checksums and the manifest that names all objects; make them durable."""
    facts = replace(facts, gaps=GAPS in group)
    group.attrs["tomotrain"] = {
        k: v for k, v in facts.to_json().items() if k not in ("digest", "stored_bytes")
    }
    seals: dict[str, int] = {}
    for array in [*range(facts.levels), *([GAPS] if facts.gaps else [])]:
        seals |= record_checksums(writable(group, array), folder)
    for begun in folder.rglob(f"*{BEGUN}"):
        begun.unlink()
    manifest = Manifest.of(folder, seals)
    manifest.write(folder)
    _make_durable(folder)
    return replace(facts, digest=manifest.digest, stored_bytes=manifest.size)


@dataclass(frozen=True)
class DamagedSlab:
    """A slab of level 0 that holds NaN or infinite voxels, `count` of them."""

    frame: int
    start: int
    planes: int
    count: int


def _write_slabs(scan: Scan, finest: zarr.Array[Any], report: Report) -> tuple[Moments, list[DamagedSlab]]:
    """Stream the scan into level 0, one row of shards at a time."""
    header = scan.header
    total = _planes(header)
    moments, damaged, done = Moments(), [], 0
    for slab in scan.slabs(SAMPLING.shard[0]):
        report(Progress("reading", done, total, "planes"))
        finite = slab.voxels
        if header.dtype.kind == "f":
            mask = _finite(slab.voxels)
            if not mask.all():
                finite = slab.voxels[mask]
                damaged.append(
                    DamagedSlab(slab.frame, slab.start, len(slab.voxels), slab.voxels.size - finite.size)
                )
        moments = moments.merge(Moments.of(finite))
        finest[_place(finest, slab)] = slab.voxels
        done += len(slab.voxels)
        del slab, finite  # before the reader makes the next one
    if done != total:
        raise InvalidScan(f"the scan breaks off: {done} planes arrived of the {total} declared")
    return moments, damaged


def _planes(header: ScanHeader) -> int:
    return header.grid.shape[0] * (header.frames.count if header.frames else 1)


def _place(finest: zarr.Array[Any], slab: Slab) -> Any:
    planes = slice(slab.start, slab.start + len(slab.voxels))
    return planes if finest.ndim == 3 else (slab.frame, planes)


def _replace_non_finite(
    finest: zarr.Array[Any], gaps: zarr.Array[Any], slab: DamagedSlab, value: float
) -> None:
    start, stop = (slab.start, 0, 0), (slab.start + slab.planes, *finest.shape[-2:])
    if finest.ndim == 3:
        voxels = ChunkReader(finest).box(start, stop)
    else:
        voxels = ChunkReader(finest).box((slab.frame, *start), (slab.frame + 1, *stop))[0]
    missing = ~_finite(voxels)
    voxels[missing] = value
    place = _place(finest, Slab(slab.frame, slab.start, voxels))
    finest[place], gaps[place] = voxels, missing


def _finite(voxels: Array) -> NDArray[np.bool_]:
    """Which voxels are neither NaN nor infinite; plane by plane, so that no second slab is made."""
    mask = np.empty(voxels.shape, np.bool_)
    for plane, flags in zip(voxels, mask, strict=True):
        np.less_equal(np.abs(plane), LARGEST, out=flags)
    return mask


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations; merged by Chan, Golub and LeVeque (1983), in float64."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    @classmethod
    def of(cls, values: Array) -> Moments:
        """Of some finite values."""
        if values.size == 0:
            return cls()
        flat = values.reshape(-1)
        mean = float(flat.mean(dtype=np.float64))
        squares = 0.0
        for start in range(0, flat.size, BLOCK):
            deviation = np.subtract(flat[start : start + BLOCK], mean, dtype=np.float64)
            squares += float(deviation @ deviation)
        return cls(values.size, mean, squares, float(flat.min()), float(flat.max()))

    def merge(self, other: Moments) -> Moments:
        """Of both sets of values."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * other.count / count,
            self.squares + other.squares + step * step * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def statistics(self, replaced: int) -> Statistics:
        """As they are stored, with `replaced` more voxels at the minimum. A constant scan deviates by 0."""
        added = Moments(replaced, self.minimum, 0.0, self.minimum, self.minimum) if replaced else Moments()
        every = self.merge(added)
        std = 0.0 if every.minimum == every.maximum else float(np.sqrt(every.squares / every.count))
        return Statistics(every.minimum, every.maximum, every.mean, std, replaced)


def _warnings(statistics: Statistics) -> list[str]:
    """What the voxel values themselves give reason to say."""
    said = []
    if statistics.replaced:
        said.append(
            f"{statistics.replaced:,} voxels were NaN or infinite; "
            f"they were replaced by the smallest finite value, {statistics.minimum:g}; " + CURE_OF_GAPS
        )
    if statistics.minimum == statistics.maximum:
        said.append(f"the scan has no contrast: every voxel is {statistics.minimum:g}")
    if max(abs(statistics.minimum), abs(statistics.maximum)) > HUGE:
        said.append(
            f"values reach from {statistics.minimum:g} to {statistics.maximum:g}, which no scanner measures; "
            "they are kept, but will dominate every mean"
        )
    return said


def _make_durable(folder: Path) -> None:
    """Sync every file and folder, so that a published volume survives a power cut."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        sync(path)
