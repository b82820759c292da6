"""Zarr v2 and v3: a single array, or the finest level of an OME-Zarr 0.4 or 0.5 image; a folder or a zip.

Metadata are judged first (`zarr_metadata`), then zarr-python opens that one array. Every chunk is read, so
every checksum is verified; absent chunks are counted and named, as they read as the fill value. OME-Zarr says
how large voxels are, where its axes have units, but not which way the patient lies: an affine is known only
where the attributes hold one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from storage.errors import InvalidScan
from storage.grid import VoxelGrid
from storage.readers.archives import Member, Tree, damage_named, is_zip, open_tree, open_zip
from storage.readers.base import Frames, Limits, ScanHeader, Slab, Voxels
from storage.readers.scan import OpenScan, check_size, stack
from storage.readers.zarr_chunks import check_stored
from storage.readers.zarr_metadata import (
    FRAME_AXES,
    MARKERS,
    MILLIMETRES,
    SECONDS,
    ArrayPlan,
    is_marker,
    plan_array,
)

SPACE_AXES = ("z", "y", "x")
DERIVED = "a job ({}) made these voxels from another volume, perhaps with loss: no scanner measured them"


class ZarrReader:
    """Zarr arrays and OME-Zarr images, in a folder or a zip archive."""

    name = "zarr"
    accepts = "OME-Zarr or Zarr (a folder, or a zip of one)"

    def recognises(self, path: Path) -> bool:
        """Whether a folder or an archive holds a file that marks a Zarr node."""
        if path.is_dir():
            return any((path / marker).is_file() for marker in MARKERS)
        if not is_zip(path):
            return False
        with open_zip(path, Limits()) as archive:
            return any(is_marker(name) for name in archive.namelist())

    def open(self, path: Path, limits: Limits) -> ZarrScan:
        """Judge the metadata, count the chunks, open the array. See `Reader.open`."""
        with ExitStack() as resources:
            tree = resources.enter_context(open_tree(path, limits))
            plan = plan_array(tree, limits)
            places = _places(plan)
            frames = _frames(plan, places)
            warnings = [] if plan.made_by is None else [DERIVED.format(plan.made_by)]
            grid = _grid(plan, places, warnings)
            check_size(grid.shape, frames.count if frames else 1, plan.dtype.itemsize, limits)
            metadata = {"zarr_format": plan.zarr_format, "ome_zarr": plan.ome_version}
            stored = _stored_chunks(tree, plan)
            metadata |= _count_chunks(stored, plan, warnings)
            header = ScanHeader(self.name, grid, _delivered(plan.dtype), frames, metadata)
            store = ZipStore(path, mode="r") if is_zip(path) else LocalStore(path, read_only=True)
            resources.callback(store.close)
            chunks = Chunks(tree, _open_array(store, plan), plan, stored)
            return ZarrScan(header, warnings, resources.pop_all(), chunks, places, limits)


@dataclass(frozen=True)
class Places:
    """Where z, y, x and the frames are among an array's axes; all other axes have length 1."""

    space: tuple[int, int, int]
    frame: int | None


class ZarrScan(OpenScan):
    """An opened array. Planes are read a chunk's depth at a time where that fits the limits."""

    def __init__(
        self,
        header: ScanHeader,
        warnings: list[str],
        resources: ExitStack,
        chunks: Chunks,
        places: Places,
        limits: Limits,
    ) -> None:
        super().__init__(header, warnings, resources)
        self._chunks, self._places, self._limits = chunks, places, limits

    def slabs(self, depth: int) -> Iterator[Slab]:
        """See `Scan.slabs`."""
        frames = self.header.frames.count if self.header.frames else 1
        yield from stack(self._planes(frames, depth), frames, self.header.grid.shape[0], depth)

    def _planes(self, frames: int, depth: int) -> Iterator[Voxels]:
        count, *plane = self.header.grid.shape
        block = self._chunks.plan.chunks[self._places.space[0]]
        if block * math.prod(plane) * self._chunks.plan.dtype.itemsize > self._limits.plane_bytes:
            block = depth
        for frame in range(frames):
            for start in range(0, count, block):
                yield from self._block(frame, start, min(start + block, count))

    def _block(self, frame: int, start: int, stop: int) -> Voxels:
        """Planes `start ... stop` (d, y, x) of a frame."""
        region = [slice(0, size) for size in self._chunks.plan.shape]
        region[self._places.space[0]] = slice(start, stop)
        if self._places.frame is not None:
            region[self._places.frame] = slice(frame, frame + 1)
        voxels = self._chunks.read(tuple(region))
        spare = [axis for axis in range(voxels.ndim) if axis not in self._places.space]
        ordered: Voxels = voxels.transpose([*spare, *self._places.space])
        return ordered.reshape(ordered.shape[-3:]).astype(self.header.dtype, copy=False)


class Chunks:
    """An array whose stored files (by place in the grid) are looked at before zarr-python unpacks them."""

    def __init__(
        self, tree: Tree, array: Any, plan: ArrayPlan, stored: dict[tuple[int, ...], Member]
    ) -> None:
        self.plan = plan
        self._tree, self._array, self._stored = tree, array, stored
        self._sound: set[tuple[int, ...]] = set()

    def read(self, region: tuple[slice, ...]) -> Voxels:
        """The voxels of a region. Raises ScanTooLarge or InvalidScan, naming the chunk."""
        places = list(self._places(region))
        for place in places:
            self._check(place)
        try:
            return np.asarray(self._array[region])
        except Exception as error:
            raise InvalidScan(self._culprit(places, error)) from error

    def _places(self, region: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        """The places in the grid of chunks that a region touches."""
        steps = zip(region, self.plan.chunks, strict=True)
        return itertools.product(*(range(each.start // step, -(-each.stop // step)) for each, step in steps))

    def _check(self, place: tuple[int, ...]) -> None:
        member = self._stored.get(place)
        if member is None or place in self._sound:
            return
        key = self._array.metadata.encode_chunk_key(place)
        with damage_named(member), self._tree.open(member) as file:
            check_stored(file, member.size, self.plan.packing, key)
        self._sound.add(place)

    def _culprit(self, places: list[tuple[int, ...]], error: Exception) -> str:
        """Which of the chunks cannot be read, and why."""
        for place in places:
            steps = zip(place, self.plan.chunks, self.plan.shape, strict=True)
            chunk = tuple(slice(at * step, min((at + 1) * step, size)) for at, step, size in steps)
            try:
                self._array[chunk]
            except Exception as cause:
                return f"corrupt chunk {self._array.metadata.encode_chunk_key(place)}: {cause}"
        return f"the array cannot be read: {error}"


def _open_array(store: Any, plan: ArrayPlan) -> Any:
    try:
        return zarr.open_array(store=store, path=plan.path, mode="r", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
    except Exception as error:
        raise InvalidScan(f"zarr-python cannot open the array ({type(error).__name__})") from None


def _delivered(stored: np.dtype[Any]) -> np.dtype[Any]:
    """The native type in which values arrive: flags become uint8, half floats float32."""
    if stored.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if stored == np.float16 else stored.newbyteorder("=")


def _places(plan: ArrayPlan) -> Places:
    names = [axis.name for axis in plan.axes]
    if any(names.count(name) != 1 for name in SPACE_AXES):
        raise InvalidScan(f"a volume with the axes z, y and x is needed; this array has {_told(names)}")
    z, y, x = (names.index(name) for name in SPACE_AXES)
    spare = [axis for axis in range(len(names)) if axis not in (z, y, x) and plan.shape[axis] > 1]
    if len(spare) > 1:
        raise InvalidScan(f"more than 4 dimensions: {_told(names)} of {list(plan.shape)}; send one series")
    return Places((z, y, x), spare[0] if spare else None)


def _told(names: list[str]) -> str:
    """Names of axes that are a letter or known; others may be anybody's."""
    return ", ".join(name if len(name) == 1 or name in FRAME_AXES else "another" for name in names)


def _frames(plan: ArrayPlan, places: Places) -> Frames | None:
    if places.frame is None:
        return None
    axis = plan.axes[places.frame]
    count = plan.shape[places.frame]
    if FRAME_AXES.get(axis.name) != "t":
        return Frames("c", count)
    unit = SECONDS.get(axis.unit or "")
    step = None if unit is None or plan.scale is None else plan.scale[places.frame] * unit
    return Frames("t", count, step if step and step > 0 else None)


def _grid(plan: ArrayPlan, places: Places, warnings: list[str]) -> VoxelGrid:
    z, y, x = places.space
    shape = (plan.shape[z], plan.shape[y], plan.shape[x])
    if plan.affine is not None:
        try:
            return VoxelGrid.from_affine(shape, plan.affine)
        except (TypeError, ValueError) as error:
            raise InvalidScan(
                "the affine among the store's attributes is not a 4x4 matrix of numbers"
            ) from error
    units = [MILLIMETRES.get(plan.axes[axis].unit or "") for axis in places.space]
    if plan.scale is None or None in units:
        warnings.append("voxel size unknown: the store gives its axes no scale with a unit; nothing is in mm")
        return VoxelGrid(shape)
    spacing = [plan.scale[axis] * (unit or 0) for axis, unit in zip(places.space, units, strict=True)]
    if min(spacing) <= 0:
        raise InvalidScan(f"bad voxel size in the OME-Zarr metadata: {spacing}")
    warnings.append("orientation unknown: OME-Zarr gives voxel sizes, but no directions in the patient")
    return VoxelGrid(shape, (spacing[0], spacing[1], spacing[2]))


def _stored_chunks(tree: Tree, plan: ArrayPlan) -> dict[tuple[int, ...], Member]:
    """The files that are chunks of the array, by their place in its grid, from the names that exist."""
    stored = {}
    for member in tree.members:
        found = plan.key.fullmatch(member.name)
        if found:
            place = tuple(int(at) for at in found.groups())
            if all(at < size for at, size in zip(place, plan.grid, strict=True)):
                stored[place] = member
    return stored


def _fill(value: Any) -> str:
    """A fill value that is no number, where it is a word for one (Zarr v3, "fill value")."""
    return value if value in ("NaN", "Infinity", "-Infinity") else "0" if value is None else "of the array"


def _count_chunks(
    stored: dict[tuple[int, ...], Member], plan: ArrayPlan, warnings: list[str]
) -> dict[str, int]:
    """How many chunks there should be, and how many are absent."""
    total = math.prod(plan.grid)
    absent = total - len(stored)
    if absent:
        fill = plan.fill_value if isinstance(plan.fill_value, int | float) else _fill(plan.fill_value)
        warnings.append(f"{absent} of {total} chunks absent (reads as fill value {fill})")
    return {"chunks": total, "chunks_absent": absent}
