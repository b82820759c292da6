"""What jobs that restore a volume share: boxes are read, restored window by window, blended, and written as a
derived volume, out of core.

Each window is restored by itself, from what it holds: the values of a box do not depend on which boxes were
made before, and an attempt that goes on where another ended comes to the same bits. What is told of a box
(counts, errors) is kept as a checkpoint before the box is written, so that it is there when all are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.putt.completion import filled
from storage.checkpoints import Checkpoints
from storage.chunks import ChunkReader
from storage.compressors.base import as_dtype
from storage.derived import Box, derive
from storage.errors import CorruptVolume
from storage.gaps import Gaps
from storage.jobs import Progress
from storage.layout import VIEWING
from storage.records import Derivation, DerivedVolume, StoredVolume, VolumeRecord
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.compress import drafts_of, place_of
from workers.jobs.reading import cache_bytes
from workers.memory import BASE_BYTES
from workers.packages import program
from workers.windows import Shape, Window, shape_of, shared, within

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Frame = int | None
Numbers = Mapping[str, float]
"""What is told of a box; each is a sum or a count, to be added up over all boxes."""
Restore = Callable[[Frame, Box], tuple[Array, Numbers]]
R = TypeVar("R")
WORKING = 40
"""So many float64 arrays of a window's size its restoring holds at once, at most."""
BESIDE = 64 << 20
"""What encoders take, and memory that was given back and is still the process's."""
AHEAD = 4
"""So many windows for each thread are restored, and wait for their turn."""


class Boxes:
    """Boxes of level 0 of a volume. An error of its bytes names it. For many threads."""

    def __init__(self, record: VolumeRecord, volume: Volume, cache_bytes: int) -> None:
        self._id = record.id
        self._reader = ChunkReader(volume.array(0), cache_bytes=cache_bytes, seals=volume.manifest.seals)
        self._gaps = volume.gaps()

    def values(self, frame: Frame, box: Box) -> Array:
        """(z, y, x). Raises CorruptVolume."""
        return self._read(self._reader, frame, box)

    def gaps(self, frame: Frame, box: Box) -> Bools:
        """Where nothing was measured. Raises CorruptVolume."""
        if self._gaps is None:
            return np.zeros(shape_of(box), np.bool_)
        return self._read(self._gaps, frame, box)

    def _read(self, source: ChunkReader | Gaps, frame: Frame, box: Box) -> Array:
        z, y, x = box
        start, stop = (z.start, y.start, x.start), (z.stop, y.stop, x.stop)
        lead = ((), ()) if frame is None else ((frame,), (frame + 1,))
        try:
            return source.box((*lead[0], *start), (*lead[1], *stop)).reshape(shape_of(box))
        except CorruptVolume as error:
            error.volume_id = self._id
            raise


@dataclass
class Blend:
    """The weighted mean of what windows say of a box: `sums` over `weights`."""

    box: Box
    sums: Float64 = field(init=False)
    weights: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros(shape_of(self.box))
        self.weights = np.zeros(shape_of(self.box))

    def add(self, window: Window, values: Float64) -> None:
        """What a window says of its voxels, as far as they lie in the box."""
        part = shared(self.box, window.box)
        weight, place = window.weight(part), within(part, self.box)
        self.sums[place] += weight * values[within(part, window.box)]
        self.weights[place] += weight

    @property
    def told(self) -> Bools:
        """Where a window has said something."""
        return self.weights > 0

    def values(self) -> Float64:
        """0 where none has."""
        return np.divide(self.sums, self.weights, out=np.zeros_like(self.sums), where=self.told)


def restored_windows(
    windows: Iterable[Window], restore: Callable[[Window], R], threads: int, check: Callable[[], None]
) -> Iterator[tuple[Window, R]]:
    """Each window and what is made of it, in their order: the same sums with any number of threads.

    `check` is called between windows, and cancels by raising.
    """
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(windows)
        while some := list(itertools.islice(rest, threads * AHEAD)):
            for window, made in zip(some, pool.map(restore, some), strict=True):
                check()
                yield window, made


class Phase:
    """Progress of one phase, in the terms of the job: what writes the volume calls it coding."""

    def __init__(self, context: JobContext, name: str) -> None:
        self._context, self._name = context, name
        self._last = Progress(name)

    def report(self, progress: Progress) -> None:
        """Pass on how far it is; raises, to cancel."""
        coding = progress.phase == "coding"
        self._last = (
            Progress(self._name, progress.done, progress.total, progress.unit) if coding else progress
        )
        self.check()

    def check(self) -> None:
        """Raise where the job is to stop."""
        self._context.report(self._last)


def restored(
    context: JobContext,
    volume: Volume,
    restore: Restore,
    phase: Phase,
    *,
    settings: Mapping[str, Any],
    called: str,
    keep_gaps: bool,
    warnings: tuple[str, ...] = (),
) -> tuple[DerivedVolume, dict[str, list[float]]]:
    """The job's volume with what `restore` gives for each box, and what it told: of each name all numbers.

    `settings` are all that the values depend on, beside the program and the volume. Raises as
    `storage.derived.derive`.
    """
    record, job = context.volume_record, context.job
    derivation = Derivation(record.id, volume.stored.digest, job.kind, dict(settings))
    purpose = json.dumps([asdict(derivation), program(), context.device], sort_keys=True)
    told = context.checkpoints.part("told").meant_for(hashlib.sha256(purpose.encode()).hexdigest())
    dtype = np.dtype(volume.stored.dtype)

    def values(frame: Frame, box: Box) -> Array:
        block, numbers = restore(frame, box)
        told.part(_name(frame, box)).save({}, dict(numbers))
        return block if block.dtype == dtype else as_dtype(block, dtype)

    store, folder = place_of(context)
    stored = derive(
        volume,
        folder,
        values,
        drafts=drafts_of(context),
        derivation=derivation,
        versions=[purpose],
        keep_gaps=keep_gaps,
        warnings=warnings,
        report=phase.report,
    )
    return DerivedVolume(f"{record.name}, {called}", stored, store), _all_told(told)


def _name(frame: Frame, box: Box) -> str:
    return "-".join(["frame", str(frame or 0), *(str(part.start) for part in box)])


def _all_told(told: Checkpoints) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for folder in sorted(told.folder.iterdir()):
        if (saved := told.part(folder.name).load()) is not None:
            for name, number in saved[1].items():
                found.setdefault(name, []).append(number)
    return found


def restoring_bytes(context: JobContext, sides: Shape, threads: int) -> int:
    """What a process takes that restores by windows of these sides: the cache, a shard with the windows
    around it, its sums and weights, its coded tiles, and what each thread works on.
    """
    itemsize = np.dtype(context.stored.dtype).itemsize
    shape = context.stored.grid.shape
    shard = math.prod(min(n, s) for n, s in zip(shape, VIEWING.shard, strict=True))
    around = math.prod(min(n, s + 2 * w) for n, s, w in zip(shape, VIEWING.shard, sides, strict=True))
    return (
        BASE_BYTES
        + BESIDE
        + cache_bytes(context)
        + around * (itemsize + 2)
        + shard * (3 * 8 + 4 * itemsize)
        + threads * (WORKING + AHEAD) * 8 * math.prod(sides)
    )


def filled_box(values: Float64, observed: Bools, device: str) -> Float64:
    """A box with what was not observed filled from the pyramid of what was, one voxel at least."""
    side = max(2, 1 << (max(values.shape) - 1).bit_length())
    cube, mask = torch.zeros((2, side, side, side), dtype=torch.float64)
    part = tuple(slice(n) for n in values.shape)
    cube[part], mask[part] = torch.from_numpy(values), torch.from_numpy(observed).double()
    return filled(cube.to(device), mask.to(device))[part].cpu().numpy()


def frames_of(stored: StoredVolume) -> list[Frame]:
    """The frames of a volume, each to be restored by itself."""
    return [None] if len(stored.array_shape) == 3 else list(range(stored.array_shape[0]))


def shortened(shape: Shape, side: int) -> Shape:
    """Sides of a window, no longer than the axes."""
    z, y, x = (min(side, length) for length in shape)
    return z, y, x
