"""What kinds of jobs share that restore a volume: each box of it is restored (workers/restoring) and written
as part of a derived volume, out of core.

The values of a box do not depend on which boxes were made before, so that an attempt that goes on where
another ended comes to the same bits. What is told of a box (counts, errors) is kept as a checkpoint before
the box is written: it is there when all are.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from models.threads import one_thread
from storage.checkpoints import Checkpoints
from storage.compressors.base import as_dtype
from storage.derived import Box, derive
from storage.ids import derived_id
from storage.jobs import Progress
from storage.layout import VIEWING
from storage.records import Derivation, DerivedVolume
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, P, Result
from workers.jobs.compress import drafts_of, place_of
from workers.jobs.reading import cache_bytes
from workers.memory import BASE_BYTES, peak_bytes
from workers.packages import program, versions
from workers.restoring.blending import AHEAD
from workers.restoring.boxes import Array, Frame, Numbers
from workers.windows import Shape

Restore = Callable[[Frame, Box], tuple[Array, Numbers]]
Told = Mapping[str, list[float]]
"""Of each name the numbers of all boxes."""
WORKING = 40
"""So many float64 arrays of a window's size its restoring holds at once, at most."""
BESIDE = 64 << 20
"""What encoders take, and memory that was given back and is still the process's."""


class RestoredResult(Result):
    """What every restored volume's job tells; the volume is one of its own."""

    volume_id: str
    volume_digest: str
    source_digest: str
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    packages: dict[str, str]
    device: str


@dataclass(frozen=True)
class Plan:
    """How the boxes of a volume are restored, and what is said of it."""

    restore: Restore
    found: Mapping[str, Any]
    """All that the values depend on, beside the parameters, the program and the volume."""
    result: Callable[[Told], dict[str, Any]]
    """The fields of the kind's own."""
    warnings: tuple[str, ...] = ()
    """Of the volume that is made."""


@dataclass(frozen=True)
class Work:
    """What a plan is made from. `check` is to be called often, and cancels by raising."""

    context: JobContext
    volume: Volume
    threads: int
    check: Callable[[], None]


class Restoring(Kind[P]):
    """A kind of job that plans, restores box by box, and tells what was done."""

    doing: ClassVar[str]
    """The phase, as progress names it."""
    done: ClassVar[str]
    """The volume, after its source's name."""
    keep_gaps: ClassVar[bool]

    @abstractmethod
    def plan(self, work: Work, parameters: P) -> Plan:
        """Raises InvalidParameters where there is nothing to restore, and CorruptVolume."""

    def run(self, context: JobContext, parameters: P) -> Outcome:
        """Restore. Raises what `plan` raises, CorruptVolume, StorageFull, and what the lease raises."""
        began = time.perf_counter()
        volume, phase = context.volume(), _Phase(context, self.doing)
        work = Work(context, volume, torch.get_num_threads(), phase.check)
        with one_thread():
            plan = self.plan(work, parameters)
            settings = {**parameters.model_dump(), **plan.found}
            made, told = self._restored(work, plan, settings, phase)
        result = self.result.model_validate(
            {
                **plan.result(told),
                "volume_id": derived_id(context.job.id),
                "volume_digest": made.stored.digest,
                "source_digest": volume.stored.digest,
                "seconds": time.perf_counter() - began,
                "peak_memory_bytes": peak_bytes(),
                "packages": versions(),
                "device": context.device,
            }
        )
        return Outcome(result, derived=made)

    def _restored(
        self, work: Work, plan: Plan, settings: dict[str, Any], phase: _Phase
    ) -> tuple[DerivedVolume, Told]:
        context, source, record = work.context, work.volume.stored, work.context.volume_record
        derivation = Derivation(record.id, source.digest, self.name, settings)
        purpose = json.dumps([asdict(derivation), program(), context.device], sort_keys=True)
        told = context.checkpoints.part("told").meant_for(hashlib.sha256(purpose.encode()).hexdigest())
        dtype = np.dtype(source.dtype)

        def values(frame: Frame, box: Box) -> Array:
            block, numbers = plan.restore(frame, box)
            told.part(_name(frame, box)).save({}, dict(numbers))
            return block if block.dtype == dtype else as_dtype(block, dtype)

        store, folder = place_of(context)
        stored = derive(
            work.volume,
            folder,
            values,
            drafts=drafts_of(context),
            derivation=derivation,
            versions=[purpose],
            keep_gaps=self.keep_gaps,
            warnings=plan.warnings,
            report=phase.report,
        )
        return DerivedVolume(f"{record.name}, {self.done}", stored, store), _all_told(told)


class _Phase:
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


def _name(frame: Frame, box: Box) -> str:
    return "-".join(["frame", str(frame or 0), *(str(part.start) for part in box)])


def _all_told(told: Checkpoints) -> Told:
    found: dict[str, list[float]] = {}
    for folder in sorted(told.folder.iterdir()):
        if (saved := told.part(folder.name).load()) is not None:
            for name, number in saved[1].items():
                found.setdefault(name, []).append(number)
    return found


def restoring_bytes(context: JobContext, sides: Shape, *, before: int = 0, kept: int = 0) -> int:
    """What a process takes that restores by windows of these sides: the cache, a shard with the windows
    around it, its sums and weights, its coded tiles, and what each thread works on; or what it takes `before`
    it comes to that, of which a part is `kept`.
    """
    itemsize = np.dtype(context.stored.dtype).itemsize
    shape = context.stored.grid.shape
    shard = math.prod(min(n, s) for n, s in zip(shape, VIEWING.shard, strict=True))
    around = math.prod(min(n, s + 2 * w) for n, s, w in zip(shape, VIEWING.shard, sides, strict=True))
    windows = (
        around * (itemsize + 2)
        + shard * (3 * 8 + 4 * itemsize)
        + torch.get_num_threads() * (WORKING + AHEAD) * 8 * math.prod(sides)
    )
    return BASE_BYTES + BESIDE + cache_bytes(context) + max(windows + kept, before)
