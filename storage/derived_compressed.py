"""A volume compressed for a ratio, a PSNR or a bound: the setting is found on a sample, the whole is written
and measured, and written again with a setting that was corrected by what was measured.

A ratio is bytes of the source's voxels for each byte of the compressed volume's shards, of all levels. What a
volume takes beside them, metadata and checksums of a few kilobytes, is in its `stored_bytes` only.

Coarser levels are those of the source, coded for the same setting: they are means of what was measured, not
of what was decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from storage.checkpoints import Checkpoints
from storage.compressors import MissingPeer, UnsuitableValues
from storage.compressors.goals import Goal
from storage.compressors.report import psnr_of, unit_of
from storage.compressors.sampled import Estimate
from storage.derived import Call, Drafts, Written, assist, drafted, joined, parallel
from storage.derived_choice import chosen
from storage.derived_report import LevelReader
from storage.derived_samples import Samples
from storage.derived_schemes import LOSSLESS, Scheme, scheme_of
from storage.errors import UnreachableQuality, UnsuitableCompressor
from storage.ingest import Report
from storage.records import Derivation
from storage.volume import Volume

MOST_PASSES = 3
ENOUGH = {"ratio": 0.1, "psnr": 0.5, "bound": math.inf}
"""An excess over the goal (in its logarithm, dB) that is not worth another pass."""
MORE = {"ratio": 0.005, "psnr": 0.03, "bound": 0.05}
"""What a sample is asked for beyond the goal when it is known how far it was off, with each pass."""


@dataclass(frozen=True)
class Pass:
    """One writing of the whole, and what came of it, as measured while it was written. `psnr` is None where
    nothing changed.
    """

    number: float | None
    ratio: float
    psnr: float | None
    max_error: float
    tiles: int

    def excess(self, goal: Goal) -> float:
        """By how much it exceeds the goal."""
        return goal.excess(self.ratio, math.inf if self.psnr is None else self.psnr, self.max_error)


@dataclass(frozen=True)
class Plan:
    """How far a compression has come: which compressor of `COMPRESSORS`, the numbers of its settings, with
    that of the pass under way, and the passes that are over.
    """

    compressor: str
    numbers: tuple[float | None, ...] = ()
    passes: tuple[Pass, ...] = ()


@dataclass(frozen=True)
class Compressed:
    """A compressed volume that meets its goal, not published yet."""

    written: Written
    compressor: str
    setting: dict[str, float]
    passes: tuple[Pass, ...]
    sampled_tiles: int


def compressed(  # noqa: PLR0913
    source: Volume,
    goal: Goal,
    *,
    compressor: str,
    seed: int,
    drafts: Drafts,
    derivation: Derivation,
    checkpoints: Checkpoints,
    report: Report = lambda progress: None,
    threads: int = 1,
    ring: Callable[[int], None] = lambda count: None,
) -> Compressed:
    """Compress all of a volume; `derivation` gets the compressor and its setting added.

    `ring` is told in each pass for how many others there is work, who may help by `assisted`.

    `compressor` is one of `CHOICES`. For a bound `putt` is what guarantees it: `bounded` for integers, for
    floats trains whose steps are chosen tile by tile, and for floats without loss blosc.

    Raises UnreachableQuality, UnsuitableCompressor, CorruptVolume, StorageFull, LeaseLost, and what `report`
    raises.
    """
    reader = LevelReader(source)

    def save(plan: Plan) -> None:
        checkpoints.save({}, {"plan": asdict(plan)})

    with parallel(threads) as each:
        samples = Samples(source, reader, seed, report, each)
        run = _Run(source, goal, reader, samples, drafts, derivation, save, report, threads, ring)
        try:
            plan = _loaded(checkpoints) or Plan(chosen(source.stored, goal, compressor, samples))
            return run.of(plan)
        except (UnsuitableValues, MissingPeer) as error:
            raise UnsuitableCompressor(compressor, str(error)) from error


def assisted(
    source: Volume,
    goal: Goal,
    *,
    drafts: Drafts,
    report: Report = lambda progress: None,
    threads: int = 1,
    until: float = math.inf,
) -> bool:
    """Help another process that compresses the volume for the same goal, with drafts in the same folder,
    until `time.monotonic()` is past `until` or nothing is left; whether there may be more to do.

    Raises LeaseLost where the other has ended or does without, and as `compressed`.
    """
    reader, more = LevelReader(source), False
    for draft, work in joined(drafts):
        scheme = scheme_of(work["compressor"], goal, source.stored)
        more |= assist(
            draft,
            source,
            lambda frame, box: reader.box(0, frame, box),
            reader.box,
            coding=scheme.make(work["number"]),
            report=report,
            threads=threads,
            until=until,
        )
    return more


def _loaded(checkpoints: Checkpoints) -> Plan | None:
    """What an earlier attempt left."""
    if (found := checkpoints.load()) is None:
        return None
    record = found[1]["plan"]
    passes = tuple(Pass(**done) for done in record["passes"])
    return Plan(record["compressor"], tuple(record["numbers"]), passes)


@dataclass
class _Run:
    """Writes the whole until it meets the goal."""

    source: Volume
    goal: Goal
    reader: LevelReader
    samples: Samples
    drafts: Drafts
    derivation: Derivation
    save: Callable[[Plan], None]
    report: Report
    threads: int
    ring: Callable[[int], None]

    def of(self, plan: Plan) -> Compressed:
        """The nearest of the passes that meet the goal. Raises UnreachableQuality where none does."""
        scheme = scheme_of(plan.compressor, self.goal, self.source.stored)
        best = self._best(plan.passes)
        held = None if best is None else self._written(scheme, best.number, len(plan.passes))[0]
        while len(plan.passes) < MOST_PASSES and not self._is_enough(scheme, best):
            plan = self._with_next(plan, scheme, best is None)
            *before, number = plan.numbers
            if number in before:
                break
            written, done = self._written(scheme, number, len(plan.numbers))
            plan = replace(plan, passes=(*plan.passes, done))
            if self._best(plan.passes) is done:
                held, written, best = written, held, done
            if written is not None:
                written.draft.drop()
            self.save(plan)
        if held is None or best is None:
            nearest = max(plan.passes, key=lambda done: done.excess(self.goal))
            raise self._unreachable(scheme, nearest)
        return Compressed(
            held, scheme.compressor, scheme.setting(best.number), plan.passes, len(self.samples.full.tiles)
        )

    def _with_next(self, plan: Plan, scheme: Scheme, needed: bool) -> Plan:
        """The plan with the number of its next pass: found once, so that an attempt goes on with what an
        earlier one began, and by the plan alone, so that it does not matter which attempt finds it.
        """
        if len(plan.numbers) == len(plan.passes):
            if plan.passes:
                self.samples.forget()
            number = self._next(scheme, plan.passes, needed)
            plan = replace(plan, numbers=(*plan.numbers, number))
            self.save(plan)
        return plan

    def _best(self, passes: Sequence[Pass]) -> Pass | None:
        """That meets the goal and exceeds it least."""
        met = [done for done in passes if done.excess(self.goal) >= 0]
        return min(met, key=lambda done: done.excess(self.goal), default=None)

    def _is_enough(self, scheme: Scheme, best: Pass | None) -> bool:
        if best is None:
            return False
        return scheme.scale is None or best.excess(self.goal) <= ENOUGH[self.goal.kind]

    def _next(self, scheme: Scheme, passes: Sequence[Pass], needed: bool) -> float | None:
        """The setting to try: that meets the goal on the sample, as far as samples told the truth before."""
        if scheme.scale is None and self.goal.kind == "bound":
            return None
        if passes:
            more = MORE[self.goal.kind] * len(passes) + self._told_too_well(scheme, passes[-1])
            aim = self.goal.moved(more)
            found = self.samples.estimate(self.samples.full, scheme, aim)
        else:
            aim = self.samples.aim(self.goal)
            found = self.samples.promised(scheme, self.goal)
        if needed and aim.of(found) < 0 and self.goal.of(found) < 0:
            raise self._unreachable(scheme, found)
        return found.number

    def _told_too_well(self, scheme: Scheme, last: Pass) -> float:
        """By how much the sample exceeded the goal more than the whole did, at the same setting; 0 where
        that is infinite, as nothing changed.
        """
        told = self.samples.told(self.samples.full, scheme, last.number)
        too_well = self.goal.of(told) - last.excess(self.goal)
        return too_well if math.isfinite(too_well) else 0.0

    def _written(self, scheme: Scheme, number: float | None, count: int) -> tuple[Written, Pass]:
        settings = {
            **self.derivation.settings,
            "compressor": scheme.compressor,
            "setting": scheme.setting(number),
        }
        written = drafted(
            self.source,
            lambda frame, box: self.reader.box(0, frame, box),
            coarser=self.reader.box,
            drafts=self.drafts,
            derivation=replace(self.derivation, settings=settings),
            coding=scheme.make(number),
            keep_gaps=True,
            report=lambda progress: self.report(replace(progress, phase=f"{progress.phase} {count}")),
            threads=self.threads,
            call=Call({"compressor": scheme.name, "number": number}, self.ring),
        )
        stored = self.source.stored
        peak = stored.statistics.range
        psnr = psnr_of(written.squares / math.prod(stored.array_shape), peak / unit_of(peak))
        done = Pass(
            number,
            stored.voxel_bytes / sum(written.level_bytes),
            psnr if math.isfinite(psnr) else None,
            written.largest,
            written.made + written.helped + written.kept,
        )
        return written, done

    def _unreachable(self, scheme: Scheme, nearest: Pass | Estimate) -> UnreachableQuality:
        best = {"ratio": nearest.ratio, "psnr": nearest.psnr, "max_error": nearest.max_error}
        known = {
            name: number for name, number in best.items() if number is not None and math.isfinite(number)
        }
        if self.goal.kind == "ratio":
            cure = "ask for a smaller ratio, for a PSNR or for a bound"
        else:
            cure = f"ask for less, or use a compressor without loss: {', '.join(LOSSLESS)}"
        return UnreachableQuality(
            scheme.compressor, str(self.goal), {**known, **scheme.setting(nearest.number)}, cure
        )
