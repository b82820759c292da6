"""A volume compressed for a ratio, a PSNR or a bound: the setting is found on a sample, the whole is written
and measured, and written again with a setting that was corrected by what was measured.

A ratio is bytes of the source's voxels for each byte of the compressed volume's shards, of all levels. What a
volume takes beside them, metadata and checksums of a few kilobytes, is in its `stored_bytes` only.

Coarser levels are those of the source, coded for the same setting: they are means of what was measured, not
of what was decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.checkpoints import Checkpoints
from storage.compressors import BOUNDED, COMPRESSORS, MissingPeer, UnsuitableValues
from storage.compressors.base import Setting
from storage.compressors.bounded import MOST_DELTA
from storage.compressors.report import psnr_of
from storage.compressors.sampled import Code, Each, Estimate, Goal, Sample, Tile, drawn, estimated, searched
from storage.derived import Drafts, Written, drafted, parallel
from storage.derived_coding import Coding, framed, putt, within
from storage.derived_report import LevelReader
from storage.errors import UnreachableQuality, UnsuitableCompressor
from storage.ingest import Report
from storage.jobs import Progress
from storage.layout import Level, Shape3
from storage.records import Derivation, Statistics, StoredVolume
from storage.shards import CRC_BYTES, index_bytes
from storage.volume import Volume

Array = NDArray[Any]

AUTO = "auto"
CHOICES = (*COMPRESSORS, AUTO)
"""What `compressor` may be."""
LOSSLESS = tuple(name for name, one in COMPRESSORS.items() if one.lossless)
MOST_PASSES = 3
MOST_TILES, FEWEST_TILES, SHARE = 24, 12, 8
"""Tiles of level 0 in a sample: one in `SHARE`, within these limits."""
COARSER_TILES, COARSER_SHARE = 8, 3
"""Likewise of each coarser level, 2 at least."""
TRIAL_TILES = 6
"""Tiles by which `auto` chooses."""
CACHE_BYTES = 64 << 20
"""Of decoded chunks of that level, while it is looked at."""
FINEST_ACTIVITY = 8
"""Activity is looked for in the coarsest level whose voxels span no more of level 0's along each axis."""
ENOUGH = {"ratio": 0.1, "psnr": 0.5, "bound": math.inf}
"""An excess over the goal (in its logarithm, dB) that is not worth another pass."""
MARGIN = {"ratio": 0.03, "psnr": 0.1, "bound": 0.1}
"""What a sample is asked for beyond the goal at first: about the error of its estimates."""
MORE = {"ratio": 0.005, "psnr": 0.03, "bound": 0.05}
"""Likewise when it is known how far the sample was off, with each pass."""


@dataclass(frozen=True)
class Scheme:
    """A compressor as codings of a volume, by its setting's number; it has none where `scale` is None."""

    compressor: str
    scale: Setting | None
    make: Callable[[float | None], Coding]

    def setting(self, number: float | None) -> dict[str, float]:
        """The setting with its name."""
        return {} if self.scale is None or number is None else {self.scale.name: number}


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
    """How far a compression has come: which compressor of `COMPRESSORS`, and the passes that are over."""

    compressor: str
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
) -> Compressed:
    """Compress all of a volume; `derivation` gets the compressor and its setting added.

    `compressor` is one of `CHOICES`. For a bound `putt` is what guarantees it: `bounded` for integers, for
    floats trains whose steps are chosen tile by tile, and for floats without loss blosc.

    Raises UnreachableQuality, UnsuitableCompressor, CorruptVolume, StorageFull, LeaseLost, and what `report`
    raises.
    """
    reader = LevelReader(source)

    def save(plan: Plan) -> None:
        checkpoints.save({}, {"plan": asdict(plan)})

    with parallel(threads) as each:
        samples = _Samples(source, reader, seed, report, each)
        run = _Run(source, goal, reader, samples, drafts, derivation, save, report, threads)
        try:
            plan = _loaded(checkpoints)
            if plan is None:
                plan = Plan(_chosen(source.stored, goal, compressor, samples))
                save(plan)
            return run.of(plan)
        except (UnsuitableValues, MissingPeer) as error:
            raise UnsuitableCompressor(compressor, str(error)) from error


# What a compressor is for a volume


def scheme_of(name: str, goal: Goal, stored: StoredVolume) -> Scheme:
    """A compressor of `COMPRESSORS` for a volume and a goal. Raises UnsuitableValues, MissingPeer, and
    UnreachableQuality where one that loses something is to lose nothing.
    """
    known = COMPRESSORS[name]
    if goal.kind == "bound" and name == "putt":
        return _bounded(goal, np.dtype(stored.dtype))
    scale = known.setting(_extremes(stored.statistics, stored.dtype))
    if scale is None:
        return Scheme(name, None, lambda number: framed(name, {}, lossless=True))
    if goal == Goal("bound", 0):
        cure = f"use putt, auto, or one without loss: {', '.join(LOSSLESS)}"
        raise UnreachableQuality(name, str(goal), {}, cure)
    if name == "putt":
        return Scheme(name, scale, lambda number: putt(_number(number)))
    return Scheme(name, scale, lambda number: framed(name, {scale.name: _number(number)}))


def _bounded(goal: Goal, dtype: np.dtype[Any]) -> Scheme:
    if dtype.kind in "iu":
        delta = float(min(math.floor(goal.value), MOST_DELTA))
        return Scheme(
            BOUNDED.name, None, lambda number: framed(BOUNDED.name, {"delta": delta}, lossless=delta == 0)
        )
    if goal.value == 0:
        return Scheme("blosc", None, lambda number: framed("blosc", {}, lossless=True))
    return Scheme("putt", None, lambda number: within(goal.value))


def _extremes(statistics: Statistics, dtype: str) -> Array:
    """The least and the largest value: settings go by them."""
    return np.array([statistics.minimum, statistics.maximum]).astype(dtype).reshape(1, 1, 2)


def _number(number: float | None) -> float:
    assert number is not None
    return number


def _loaded(checkpoints: Checkpoints) -> Plan | None:
    """What an earlier attempt left."""
    if (found := checkpoints.load()) is None:
        return None
    record = found[1]["plan"]
    return Plan(record["compressor"], tuple(Pass(**done) for done in record["passes"]))


def _chosen(stored: StoredVolume, goal: Goal, compressor: str, samples: _Samples) -> str:
    """The compressor itself, or by `auto` the one that does best on a small sample."""
    if compressor != AUTO:
        return compressor
    found = list(_candidates(stored, goal, samples, samples.trial))
    if not found:
        raise UnsuitableCompressor(AUTO, "no compressor that is installed takes these values")
    met = [one for one in found if goal.of(one[1]) >= 0]
    if goal.kind == "ratio":
        return max(met or found, key=lambda one: (goal.of(one[1]) >= 0, one[1].psnr, one[1].ratio))[0]
    return min(met or found, key=lambda one: one[1].stored_bytes)[0]


def _candidates(
    stored: StoredVolume, goal: Goal, samples: _Samples, sample: Sample
) -> Iterator[tuple[str, Estimate]]:
    """What each compressor makes of a sample, without those that cannot take it."""
    for name in COMPRESSORS:
        try:
            scheme = scheme_of(name, goal, stored)
            yield name, samples.estimate(sample, scheme, goal)
        except (UnsuitableValues, MissingPeer, UnreachableQuality):
            continue


# Samples


@dataclass
class _Samples:
    """Samples of a volume, and what codings make of them."""

    source: Volume
    reader: LevelReader
    seed: int
    report: Report
    each: Each
    _known: dict[int, Sample] = field(default_factory=dict)
    _tried: int = 0

    @property
    def full(self) -> Sample:
        """That the setting is found on."""
        tiles = self._count(0)
        return self._of(min(MOST_TILES, max(FEWEST_TILES, tiles // SHARE)))

    @property
    def trial(self) -> Sample:
        """A small one."""
        return self._of(TRIAL_TILES)

    def is_whole(self, sample: Sample) -> bool:
        """Whether it has all tiles, so that nothing is left to chance."""
        return len(sample.tiles) == sum(self._count(level) for level in range(len(self.source.levels)))

    def estimate(
        self,
        sample: Sample,
        scheme: Scheme,
        goal: Goal,
        known: list[Estimate] | None = None,
        start: float | None = None,
    ) -> Estimate:
        """The estimate that meets the goal, or comes nearest; the search begins with the setting `start`."""
        known = [] if known is None else known
        if scheme.scale is None:
            return estimated(sample, self._code(scheme.make(None)), None, self.each)
        return searched(
            sample,
            lambda number: self._code(scheme.make(number)),
            scheme.scale,
            goal,
            known=known,
            start=start,
            tried=known.append,
            each=self.each,
        )

    def told(self, scheme: Scheme, number: float | None) -> Estimate:
        """What the full sample says of a setting."""
        return estimated(self.full, self._code(scheme.make(number)), number, self.each)

    def _code(self, coding: Coding) -> Code:
        levels = [coding.tiling(level).chunk for level in self.source.levels]

        def code(values: Array, level: int) -> tuple[int, Array]:
            self.report(Progress("fitting", self._tried, None, "tiles"))
            self._tried += 1
            data = coding.encoded(values, levels[level])
            told = values
            if level == 0 and not coding.lossless:
                told = coding.decoded(data, values.shape, levels[0], values.dtype)
            return len(data) + CRC_BYTES, told

        return code

    def _of(self, count: int) -> Sample:
        if count not in self._known:
            self._known[count] = self._drawn(count)
        return self._known[count]

    def _drawn(self, count: int) -> Sample:
        stored = self.source.stored
        tiles, overhead = [], 0
        for number, level in enumerate(self.source.levels):
            places = self._places(level)
            most = count if number == 0 else min(COARSER_TILES, count, max(2, len(places) // COARSER_SHARE))
            activity = self._activity(number, places) if len(places) > most else np.ones(len(places))
            for row, weight in zip(*drawn(activity, most, self.seed + number), strict=True):
                frame, box = places[row]
                tiles.append(Tile(self.reader.box(number, frame, box), float(weight), number))
            overhead += self._index_bytes(level)
        statistics = stored.statistics
        return Sample(
            tuple(tiles),
            stored.voxel_bytes,
            math.prod(stored.array_shape),
            overhead,
            statistics.maximum - statistics.minimum,
        )

    def _places(self, level: Level) -> list[tuple[int | None, tuple[slice, slice, slice]]]:
        """All tiles of a level: their frames, and their boxes."""
        chunk = _tiling(level)
        counts = [-(-n // c) for n, c in zip(level.shape, chunk, strict=True)]
        boxes = []
        for corner in np.ndindex(*counts):
            z, y, x = (
                slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(corner, chunk, level.shape, strict=True)
            )
            boxes.append((z, y, x))
        return [(frame, box) for frame in self._frames for box in boxes]

    def _activity(
        self, number: int, places: list[tuple[int | None, tuple[slice, slice, slice]]]
    ) -> NDArray[np.float64]:
        """How rough a coarse level is where a tile is."""
        levels = self.source.levels
        looked = max(n for n, level in enumerate(levels) if n == 0 or max(level.factor) <= FINEST_ACTIVITY)
        if looked < number:
            return np.ones(len(places))
        reader = LevelReader(self.source, CACHE_BYTES)
        ratio = [b // a for a, b in zip(levels[number].factor, levels[looked].factor, strict=True)]
        found = np.empty(len(places))
        for row, (frame, box) in enumerate(places):
            z, y, x = (
                slice(axis.start // r, max(axis.start // r + 1, min(-(-axis.stop // r), n)))
                for axis, r, n in zip(box, ratio, levels[looked].shape, strict=True)
            )
            self.report(Progress("sampling", row, len(places), "tiles"))
            found[row] = _roughness(reader.box(looked, frame, (z, y, x)))
        return found

    def _index_bytes(self, level: Level) -> int:
        tiling = COMPRESSED.tiling(level)
        per_shard = math.prod(s // c for s, c in zip(tiling.shard, tiling.chunk, strict=True))
        shards = math.prod(-(-n // s) for n, s in zip(level.shape, tiling.shard, strict=True))
        return len(self._frames) * shards * index_bytes(per_shard)

    def _count(self, number: int) -> int:
        level = self.source.levels[number]
        counts = [-(-n // c) for n, c in zip(level.shape, _tiling(level), strict=True)]
        return len(self._frames) * math.prod(counts)

    @property
    def _frames(self) -> list[int | None]:
        stored = self.source.stored
        return [None] if len(stored.axes) == 3 else list(range(stored.array_shape[0]))


COMPRESSED = putt(1.0)
"""All compressed volumes are tiled as this one."""


def _tiling(level: Level) -> Shape3:
    return COMPRESSED.tiling(level).chunk


def _roughness(values: Array) -> float:
    """The mean absolute difference of neighbours along all axes: bytes grow with it."""
    exact = values.astype(np.float64)
    sums = [float(np.abs(np.diff(exact, axis=axis)).sum()) for axis in range(3)]
    return math.fsum(sums) / values.size


# Passes over the whole


@dataclass
class _Run:
    """Writes the whole until it meets the goal."""

    source: Volume
    goal: Goal
    reader: LevelReader
    samples: _Samples
    drafts: Drafts
    derivation: Derivation
    save: Callable[[Plan], None]
    report: Report
    threads: int

    def of(self, plan: Plan) -> Compressed:
        """The nearest of the passes that meet the goal. Raises UnreachableQuality where none does."""
        scheme = scheme_of(plan.compressor, self.goal, self.source.stored)
        known: list[Estimate] = []
        passes = list(plan.passes)
        best = self._best(passes)
        held = None if best is None else self._written(scheme, best.number, len(passes))[0]
        while len(passes) < MOST_PASSES and not self._is_enough(scheme, best):
            number = self._next(scheme, known, passes, best is None)
            if number in [done.number for done in passes]:
                break
            written, done = self._written(scheme, number, len(passes) + 1)
            passes.append(done)
            if self._best(passes) is done:
                held, written, best = written, held, done
            if written is not None:
                written.draft.drop()
            self.save(replace(plan, passes=tuple(passes)))
        if held is None or best is None:
            nearest = max(passes, key=lambda done: done.excess(self.goal))
            raise self._unreachable(scheme, nearest)
        return Compressed(
            held, scheme.compressor, scheme.setting(best.number), tuple(passes), len(self.samples.full.tiles)
        )

    def _best(self, passes: Sequence[Pass]) -> Pass | None:
        """That meets the goal and exceeds it least."""
        met = [done for done in passes if done.excess(self.goal) >= 0]
        return min(met, key=lambda done: done.excess(self.goal), default=None)

    def _is_enough(self, scheme: Scheme, best: Pass | None) -> bool:
        if best is None:
            return False
        return scheme.scale is None or best.excess(self.goal) <= ENOUGH[self.goal.kind]

    def _next(self, scheme: Scheme, known: list[Estimate], passes: list[Pass], needed: bool) -> float | None:
        """The setting to try: that meets the goal on the sample, as far as samples told the truth before."""
        sample = self.samples.full
        if scheme.scale is None and self.goal.kind == "bound":
            return None
        aim, start = self.goal, None
        if passes:
            aim = aim.moved(MORE[aim.kind] * len(passes) + self._told_too_well(scheme, known, passes[-1]))
        elif not self.samples.is_whole(sample):
            aim = aim.moved(MARGIN[aim.kind])
            start = self.samples.estimate(self.samples.trial, scheme, aim).number
        found = self.samples.estimate(sample, scheme, aim, known, start)
        if needed and aim.of(found) < 0 and self.goal.of(found) < 0:
            raise self._unreachable(scheme, found)
        return found.number

    def _told_too_well(self, scheme: Scheme, known: list[Estimate], last: Pass) -> float:
        """By how much the sample exceeded the goal more than the whole did, at the same setting."""
        told = next((one for one in known if one.number == last.number), None)
        if told is None:
            told = self.samples.told(scheme, last.number)
            known.append(told)
        return self.goal.of(told) - last.excess(self.goal)

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
        )
        stored, statistics = self.source.stored, self.source.stored.statistics
        psnr = psnr_of(
            written.squares / math.prod(stored.array_shape), statistics.maximum - statistics.minimum
        )
        done = Pass(
            number,
            stored.voxel_bytes / sum(written.level_bytes),
            psnr if math.isfinite(psnr) else None,
            written.largest,
            written.made + written.kept,
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
