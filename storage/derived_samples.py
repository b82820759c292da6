"""Samples of a stored volume's tiles, and what codings make of them.

Tiles of all levels are drawn by how rough a coarse level is where they are (`storage.compressors.sampled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.compressors.goals import Goal
from storage.compressors.sampled import Code, Each, Estimate, Sample, Tile, drawn, estimated, searched
from storage.derived_coding import Coding, putt
from storage.derived_report import LevelReader
from storage.derived_schemes import Scheme
from storage.ingest import Report
from storage.jobs import Progress
from storage.layout import Level, Shape3
from storage.shards import CRC_BYTES, index_bytes
from storage.volume import Volume

Array = NDArray[Any]

MOST_TILES, FEWEST_TILES, SHARE = 24, 12, 8
"""Tiles of level 0 in a sample: one in `SHARE`, within these limits."""
COARSER_TILES, COARSER_SHARE = 8, 3
"""Likewise of each coarser level, 2 at least."""
TRIAL_TILES = 6
"""Tiles of level 0 in a small sample: by these searches begin, and `auto` sees who is hopeful."""
FINEST_ACTIVITY = 8
"""Activity is looked for in the coarsest level whose voxels span no more of level 0's along each axis."""
CACHE_BYTES = 64 << 20
"""Of decoded chunks, while activity is looked for."""
MARGIN = {"ratio": 0.03, "psnr": 0.1, "bound": 0.1}
"""What a sample is asked for beyond the goal at first (in its logarithm, dB): about the error of its
estimates.
"""
COMPRESSED = putt(1.0)
"""All compressed volumes are tiled as this one."""


@dataclass
class Samples:
    """Samples of a volume, and what codings make of them."""

    source: Volume
    reader: LevelReader
    seed: int
    report: Report
    each: Each
    _samples: dict[int, Sample] = field(default_factory=dict)
    _estimates: dict[tuple[int, str], dict[float | None, Estimate]] = field(default_factory=dict)
    """By the sample, which is kept, and the compressor."""
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

    def aim(self, goal: Goal) -> Goal:
        """What a sample is to meet so that the whole meets the goal, as far as is known at first."""
        return goal if self.is_whole(self.full) else goal.moved(MARGIN[goal.kind])

    def promised(self, scheme: Scheme, goal: Goal) -> Estimate:
        """What the full sample says of the setting that meets a goal, for a first writing of the whole."""
        aim = self.aim(goal)
        start = None if self.is_whole(self.full) else self.estimate(self.trial, scheme, aim).number
        return self.estimate(self.full, scheme, aim, start)

    def estimate(self, sample: Sample, scheme: Scheme, goal: Goal, start: float | None = None) -> Estimate:
        """The estimate that meets the goal, or comes nearest; the search begins with the setting `start`, or
        with what the sample was known to say before.
        """
        if scheme.scale is None:
            return self.told(sample, scheme, None)
        known = self._told(sample, scheme)
        return searched(
            sample,
            lambda number: self._code(scheme.make(number)),
            scheme.scale,
            goal,
            known=list(known.values()),
            start=start,
            tried=lambda found: known.update({found.number: found}),
            each=self.each,
        )

    def told(self, sample: Sample, scheme: Scheme, number: float | None) -> Estimate:
        """What a sample says of a setting."""
        known = self._told(sample, scheme)
        if number not in known:
            known[number] = estimated(sample, self._code(scheme.make(number)), number, self.each)
        return known[number]

    def forget(self) -> None:
        """What codings made of the samples: a search after this depends on nothing that was tried before."""
        self._estimates.clear()

    def _told(self, sample: Sample, scheme: Scheme) -> dict[float | None, Estimate]:
        return self._estimates.setdefault((id(sample), scheme.compressor), {})

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
        if count not in self._samples:
            self._samples[count] = self._drawn(count)
        return self._samples[count]

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
        return Sample(
            tuple(tiles),
            stored.voxel_bytes,
            math.prod(stored.array_shape),
            overhead,
            stored.statistics.range,
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


def _tiling(level: Level) -> Shape3:
    return COMPRESSED.tiling(level).chunk


def _roughness(values: Array) -> float:
    """The mean absolute difference of neighbours along all axes: bytes grow with it."""
    exact = values.astype(np.float64)
    sums = [float(np.abs(np.diff(exact, axis=axis)).sum()) for axis in range(3)]
    return math.fsum(sums) / values.size
