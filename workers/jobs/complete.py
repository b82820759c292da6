"""`complete`: what was never measured of a volume, filled by what was, window by window.

First the whole frame is looked at in cells, each the mean of what was observed in it; cells without anything
are filled from coarser ones. So there is something to say of every voxel, however far the next observed one
is. Each window then completes what differs from that (models/putt/completion.py): where nothing was observed
anywhere near, the difference is held at 0. The least and the greatest observed value bound what is filled.

One voxel in 200 and one block of 4 x 4 x 4 in 200 of what was observed are hidden from all windows, and known
again afterwards: what the filling errs there is the certificate of the very filling that is published.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from models.putt.completion import complete
from models.putt.morton import from_morton
from models.threads import one_thread
from storage.compressors.base import as_dtype
from storage.derived import Box
from storage.errors import InvalidParameters
from storage.ids import derived_id
from storage.jobs import Progress
from storage.layout import VIEWING
from storage.records import StoredVolume
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.jobs.reading import cache_bytes
from workers.jobs.restoring import (
    Array,
    Blend,
    Bools,
    Boxes,
    Float64,
    Frame,
    Numbers,
    Phase,
    filled_box,
    frames_of,
    restored,
    restored_windows,
    restoring_bytes,
    shortened,
)
from workers.memory import peak_bytes
from workers.packages import versions
from workers.windows import Shape, Window, Windows, within

SHARED = 1 / 4
"""Of a window's side, with the next one."""
THIN, THIN_TILE = 16, 32
"""Of a volume that is thinner than this, the side of windows at most: they are completed as cubes."""
CELL, MOST_CELLS = 8, 128
"""Side of a cell of the overview, doubled until there are no more of them along an axis."""
OVERVIEW_ARRAYS = 10
"""Float64 arrays of all cells that are held at once, at most."""
ONE_IN, BLOCK = 200, 4
"""Of the observed voxels, and of blocks of this side, that are hidden."""
SOURCES = ("train", "smooth", "pyramid", "overview")
KINDS = ("scattered", "blocks")


class CompleteParameters(Parameters):
    """Which voxels were observed, and how the others are found."""

    mask_volume_id: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="a volume of the same shape (of one frame at least), not 0 where a voxel was observed; "
        "null: all that was finite in the scan that was sent",
    )
    keep_observed: bool = Field(
        True, description="observed voxels keep every bit; false: they too become what the train says"
    )
    tile: Literal[16, 32, 64] = Field(64, description="side of a window")
    rank: int | None = Field(
        None, ge=1, le=4096, description="of a window's train; null: found by voxels that are hidden from it"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="of what is hidden: same seed, same volume")


class HeldOut(Result):
    """Errors at voxels that were observed, and hidden from what filled them."""

    voxels: int
    rmse: float | None = Field(description="in units of the values; null without such voxels")
    psnr: float | None = Field(description="dB, by the range of observed values; null without error")


class CompleteResult(Result):
    """What was filled, and how well; the volume is one of its own."""

    volume_id: str
    gaps: int = Field(description="voxels that were not observed, and are filled")
    share: float = Field(description="of all voxels")
    scattered: HeldOut = Field(description="single voxels, as most gaps of a voxel or two")
    blocks: HeldOut = Field(description="blocks of 4 x 4 x 4; gaps that are deeper err more")
    windows: dict[str, int] = Field(description="restored windows, by what told them most nearly")
    volume_digest: str
    source_digest: str
    mask_digest: str | None
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    packages: dict[str, str]
    seed: int
    device: str


class Complete(Kind[CompleteParameters]):
    """An overview of each frame, and completed windows over it."""

    name = "complete"
    version = "1"
    title = "Complete"
    description = (
        "Makes a volume without gaps: voxels that were NaN in the scan, or that a mask says were not "
        "observed, are filled smoothly or by tensor trains, whichever tells hidden voxels best. Observed "
        "voxels keep every bit."
    )
    parameters = CompleteParameters
    result: ClassVar[type[Result]] = CompleteResult

    def memory_bytes(self, context: JobContext, parameters: CompleteParameters) -> int:
        """A shard with the windows around it, the overview, and what one window takes."""
        shape = context.stored.grid.shape
        overview = OVERVIEW_ARRAYS * 8 * (1 << (max(_cells(shape)) - 1).bit_length()) ** 3
        mask = 0 if parameters.mask_volume_id is None else cache_bytes(context)
        sides = _sides(shape, parameters.tile)
        return restoring_bytes(context, sides, torch.get_num_threads()) + overview + mask

    def run(self, context: JobContext, parameters: CompleteParameters) -> Outcome:
        """Complete. Raises InvalidParameters without gaps or without anything else, and CorruptVolume."""
        began = time.perf_counter()
        volume, threads = context.volume(), torch.get_num_threads()
        with one_thread():
            observed = _Observed.of(context, volume, parameters)
            gaps = _counted(context, volume.stored, observed, parameters)
            completing = Completing(context, volume.stored, observed, parameters, threads)
            made, told = restored(
                context,
                volume,
                completing,
                completing.phase,
                settings={**parameters.model_dump(), "mask_digest": observed.mask_digest},
                called="completed",
                keep_gaps=False,
                warnings=(f"{gaps:,} voxels that were not observed are filled by the job complete",),
            )
        result = CompleteResult(
            volume_id=derived_id(context.job.id),
            gaps=gaps,
            share=gaps / math.prod(volume.stored.array_shape),
            scattered=_held_out("scattered", told),
            blocks=_held_out("blocks", told),
            windows={source: int(sum(told[source])) for source in SOURCES},
            volume_digest=made.stored.digest,
            source_digest=volume.stored.digest,
            mask_digest=observed.mask_digest,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
            packages=versions(),
            seed=parameters.seed,
            device=context.device,
        )
        return Outcome(result, derived=made)


@dataclass(frozen=True)
class _Observed:
    """The voxels of a volume, and which of them were observed: by its own gaps, and by a mask."""

    source: Boxes
    mask: Boxes | None = None
    mask_has_frames: bool = False
    mask_digest: str | None = None

    @classmethod
    def of(cls, context: JobContext, volume: Volume, parameters: CompleteParameters) -> _Observed:
        """Raises InvalidParameters for a mask of another shape, MissingVolume, VolumeNotReady."""
        source = Boxes(context.volume_record, volume, cache_bytes(context))
        if parameters.mask_volume_id is None:
            return cls(source)
        record = context.find_volume(parameters.mask_volume_id)
        mask = context.open(record)
        shape, stored = mask.stored.array_shape, volume.stored
        if shape not in (stored.array_shape, stored.grid.shape):
            told = (
                f"its shape is {shape}, and neither that of the volume, {stored.array_shape}, nor of a frame"
            )
            raise InvalidParameters([("/mask_volume_id", told)])
        return cls(source, Boxes(record, mask, cache_bytes(context)), len(shape) == 4, mask.stored.digest)

    def __call__(self, frame: Frame, box: Box) -> Bools:
        """Of a box. Raises CorruptVolume."""
        seen = ~self.source.gaps(frame, box)
        if self.mask is not None:
            frame = frame if self.mask_has_frames else None
            seen &= (self.mask.values(frame, box) != 0) & ~self.mask.gaps(frame, box)
        return seen


def _counted(
    context: JobContext, stored: StoredVolume, observed: _Observed, parameters: CompleteParameters
) -> int:
    """How many voxels were not observed. Raises InvalidParameters where none were, or all of a frame."""
    boxes, frames, gaps = list(_shards(stored.grid.shape)), frames_of(stored), 0
    for done, frame in enumerate(frames):
        missing = 0
        for number, box in enumerate(boxes):
            context.report(Progress("looking for gaps", done * len(boxes) + number, len(boxes) * len(frames)))
            missing += int(np.count_nonzero(~observed(frame, box)))
        if missing == stored.grid.voxels:
            which = "of the volume" if frame is None else f"of frame {frame}"
            raise InvalidParameters(
                [("/mask_volume_id", f"no voxel {which} was observed: nothing to fill it by")]
            )
        gaps += missing
    if gaps == 0 and parameters.keep_observed:
        told = "every voxel was observed" if observed.mask else "every voxel of the scan was finite"
        cure = "name a volume that is 0 where voxels are to be filled"
        raise InvalidParameters([("/mask_volume_id", f"there are no gaps, {told}: {cure}")])
    return gaps


@dataclass(frozen=True, eq=False)
class _Overview:
    """Of one frame: means of cells, filled; and between which values all that was observed lies."""

    cells: Float64
    side: int
    low: float
    high: float

    @classmethod
    def of(cls, shape: Shape, read: Callable[[Box], tuple[Array, Bools]], device: str) -> _Overview | None:
        """Of what `read` gives for each box: values, and which of them count; None where none does."""
        side = _cell_side(shape)
        sums, counts = np.zeros((2, *_cells(shape)))
        low, high = math.inf, -math.inf
        for box in _shards(shape):
            values, seen = read(box)
            if seen.any():
                low, high = min(low, float(values[seen].min())), max(high, float(values[seen].max()))
            place = tuple(slice(part.start // side, -(-part.stop // side)) for part in box)
            sums[place] += _by_cells(np.where(seen, values, 0), side)
            counts[place] += _by_cells(seen, side)
        if not counts.any():
            return None
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        return cls(filled_box(means, counts > 0, device), side, low, high)

    def at(self, box: Box) -> Float64:
        """Between the cells' centres linear, beyond the outermost ones constant."""
        found = self.cells
        for axis, part in enumerate(box):
            places = np.clip(
                (np.arange(part.start, part.stop) + 0.5) / self.side - 0.5, 0, found.shape[axis] - 1
            )
            below = np.minimum(places.astype(np.int64), max(found.shape[axis] - 2, 0))
            above = np.minimum(below + 1, found.shape[axis] - 1)
            weight = (places - below).reshape([-1 if one == axis else 1 for one in range(3)])
            found = (1 - weight) * found.take(below, axis) + weight * found.take(above, axis)
        return found


class Completing:
    """Gives boxes without gaps."""

    def __init__(
        self,
        context: JobContext,
        stored: StoredVolume,
        observed: _Observed,
        parameters: CompleteParameters,
        threads: int,
    ) -> None:
        self.phase = Phase(context, "completing")
        self._stored, self._observed, self._parameters = stored, observed, parameters
        self._device, self._threads = context.device, threads
        shape = stored.grid.shape
        self._windows = Windows.over(shape, _sides(shape, parameters.tile), SHARED)
        self._overview: tuple[Frame, _Overview] | None = None

    def __call__(self, frame: Frame, box: Box) -> tuple[Array, Numbers]:
        """The box, what told it, and what it errs at hidden voxels."""
        wanted = ~self._observed(frame, box)
        before = self._observed.source.values(frame, box)
        if not self._parameters.keep_observed:
            wanted[:] = True
        if not wanted.any():
            return before, dict.fromkeys(_NUMBERS, 0)
        overview = self._overview_of(frame)
        around = self._windows.around(box)
        values, seen = self._observed.source.values(frame, around), self._observed(frame, around)
        hidden = self._hidden(around)
        rest = seen & ~hidden["scattered"] & ~hidden["blocks"]

        def one(window: Window) -> tuple[Float64, str]:
            place = within(window.box, around)
            return self._completed(values[place], rest[place], overview.at(window.box))

        blend, numbers = Blend(box), dict.fromkeys(_NUMBERS, 0.0)
        touching = (window for window in self._windows.touching(box) if wanted[window.part(box)].any())
        for window, (found, source) in restored_windows(touching, one, self._threads, self.phase.check):
            blend.add(window, found)
            numbers[source] += 1
        told = np.clip(blend.values(), overview.low, overview.high)
        place = within(box, around)
        for kind in KINDS:
            errors = (told - before)[(seen & hidden[kind])[place] & blend.told]
            numbers[f"{kind}_voxels"], numbers[f"{kind}_squares"] = errors.size, float((errors**2).sum())
        numbers["range"] = overview.high - overview.low
        return np.where(wanted, as_dtype(told, before.dtype), before), numbers

    def _completed(self, values: Array, known: Bools, overview: Float64) -> tuple[Float64, str]:
        """A window, and what told it."""
        if not known.any():
            return overview, "overview"
        rest = np.where(known, values - overview, 0)
        found = complete(
            torch.from_numpy(rest).to(self._device),
            torch.from_numpy(known | _far(known)).to(self._device),
            rank=self._parameters.rank,
            seed=self._parameters.seed,
        )
        part = tuple(slice(length) for length in values.shape)
        told = found.values if self._parameters.keep_observed else from_morton(found.train.full())[part]
        return told.cpu().numpy() + overview, found.source

    def _overview_of(self, frame: Frame) -> _Overview:
        """Without what is hidden, unless nothing else was observed. That of one frame is kept."""
        if self._overview is None or self._overview[0] != frame:
            self._overview = None
            shape = self._stored.grid.shape

            def read(box: Box, whole: bool = False) -> tuple[Array, Bools]:
                self.phase.check()
                seen = self._observed(frame, box)
                for hidden in () if whole else self._hidden(box).values():
                    seen &= ~hidden
                return self._observed.source.values(frame, box), seen

            made = _Overview.of(shape, read, self._device)
            made = made or _Overview.of(shape, lambda box: read(box, whole=True), self._device)
            assert made is not None, "frames without an observed voxel were refused"
            self._overview = frame, made
        return self._overview[1]

    def _hidden(self, box: Box) -> dict[str, Bools]:
        shape, seed = self._stored.grid.shape, self._parameters.seed
        return {kind: _chosen(kind, shape, box, seed) for kind in KINDS}


_NUMBERS = (*SOURCES, *(f"{kind}_{what}" for kind in KINDS for what in ("voxels", "squares")), "range")


def _chosen(kind: str, shape: Shape, box: Box, seed: int) -> Bools:
    """Which voxels of a box are hidden if they were observed: by the place alone, whatever the box."""
    side = BLOCK if kind == "blocks" else 1
    z, y, x = (np.arange(part.start, part.stop, dtype=np.uint64) // np.uint64(side) for part in box)
    _, height, width = (np.uint64(length) for length in shape)
    keys = (z[:, None, None] * height + y[:, None]) * width + x
    drawn = _mixed(_mixed(np.uint64(2 * seed + KINDS.index(kind))) ^ keys)
    chosen: Bools = drawn < np.uint64((1 << 64) // ONE_IN)
    return chosen


def _mixed(keys: Any) -> Any:
    """Numbers of 64 bits that look drawn: SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        keys = keys + np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ keys >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ keys >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return keys ^ keys >> np.uint64(31)


def _far(known: Bools) -> Bools:
    """The middle voxel of each cell that has nothing known in it, nor in any beside it."""
    empty = _by_cells(known, CELL) == 0
    for axis in range(3):
        padded = np.pad(empty, [(int(one == axis),) * 2 for one in range(3)], constant_values=True)
        length = empty.shape[axis]
        empty = np.logical_and.reduce([padded.take(range(by, by + length), axis) for by in range(3)])
    middles = tuple(
        np.minimum(CELL * np.arange(n) + CELL // 2, m - 1)
        for n, m in zip(empty.shape, known.shape, strict=True)
    )
    far = np.zeros_like(known)
    far[np.ix_(*middles)] = empty
    return far


def _by_cells(values: Array, side: int) -> Float64:
    """Sums over cells of a box; those at its end may be shorter."""
    padded = np.pad(values, [(0, -length % side) for length in values.shape])
    z, y, x = (length // side for length in padded.shape)
    sums: Float64 = padded.reshape(z, side, y, side, x, side).sum(axis=(1, 3, 5), dtype=np.float64)
    return sums


def _cell_side(shape: Shape) -> int:
    side = CELL
    while side < min(VIEWING.shard) and max(shape) > side * MOST_CELLS:
        side *= 2
    return side


def _cells(shape: Shape) -> Shape:
    z, y, x = (-(-length // _cell_side(shape)) for length in shape)
    return z, y, x


def _sides(shape: Shape, tile: int) -> Shape:
    return shortened(shape, min(tile, THIN_TILE) if min(shape) < THIN else tile)


def _shards(shape: Shape) -> Iterator[Box]:
    """The boxes that a volume is read and written by."""
    for corner in itertools.product(*(range(0, n, s) for n, s in zip(shape, VIEWING.shard, strict=True))):
        z, y, x = (
            slice(low, min(low + s, n)) for low, s, n in zip(corner, VIEWING.shard, shape, strict=True)
        )
        yield z, y, x


def _held_out(kind: str, told: dict[str, list[float]]) -> HeldOut:
    voxels, squares = int(sum(told[f"{kind}_voxels"])), math.fsum(told[f"{kind}_squares"])
    rmse, peak = (math.sqrt(squares / voxels) if voxels else None), max(told["range"])
    psnr = 20 * math.log10(peak / rmse) if rmse and peak else None
    return HeldOut(voxels=voxels, rmse=rmse, psnr=psnr)
