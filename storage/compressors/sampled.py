"""A setting for a volume that is too large to be tried as a whole, found on a sample of its tiles.

Tile i is drawn with probability pi_i in proportion to how much is going on in it, systematically along the
volume (Madow, "On the theory of systematic sampling, II", Ann. Math. Statist. 20 (1949)), and stands for
1 / pi_i tiles: sums over all tiles are estimated without bias (Horvitz and Thompson, "A generalization of
sampling without replacement", J. Amer. Statist. Assoc. 47 (1952)), and well, as bytes grow with what is going
on. Where all tiles are drawn the sums are exact.

The logarithm of the setting is found by false position: sizes and PSNRs change nearly evenly with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, fsum, log, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import Setting
from storage.compressors.frame import Array
from storage.compressors.report import psnr_of

Float64 = NDArray[np.float64]
Point = tuple[float, float]
"""A setting, as a share of the way from the finest to the coarsest, and by how much it exceeds the goal."""
Code = Callable[[Array, int], tuple[int, Array]]
"""How many bytes a tile of a level takes, and what they decode to; where nothing is lost, and of coarser
levels, the tile itself.
"""
Each = Callable[..., Iterator[Any]]
"""As `map`, perhaps in parallel."""

TRIALS = 12
LEAST_SHARE = 0.05
"""What a tile without activity counts for, over the mean of all."""
NARROWEST = 0.05
"""Of a bracket: how near to its ends the next setting may lie."""
FARTHEST_GAP = 50.0
"""dB: a PSNR is infinite where nothing changed."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile (z, y, x) of a level that stands for `weight` tiles."""

    values: Array
    weight: float
    level: int


@dataclass(frozen=True)
class Sample:
    """Tiles of a volume. `source_bytes` and `voxels` are of the whole of level 0, `overhead` are the bytes
    that the whole takes beside its tiles', `peak` is that of PSNRs.
    """

    tiles: tuple[Tile, ...]
    source_bytes: int
    voxels: int
    overhead: int
    peak: float


@dataclass(frozen=True)
class Estimate:
    """What a setting makes of the whole, by a sample; `number` is None of what has no setting.

    `max_error` is that of the sample: the whole's is at least as large.
    """

    number: float | None
    stored_bytes: float
    ratio: float
    psnr: float
    max_error: float


@dataclass(frozen=True)
class Goal:
    """A ratio, a PSNR in dB, or a bound on the largest error, whichever `kind` says; each may be exceeded."""

    kind: str
    value: float

    @property
    def coarser_meets(self) -> bool:
        """Whether it is coarser settings that reach it."""
        return self.kind == "ratio"

    def excess(self, ratio: float, psnr: float, max_error: float) -> float:
        """By how much it is exceeded: at least 0 where it is met. Logarithms, and dB."""
        if self.kind == "ratio":
            return log(ratio) - log(self.value)
        if self.kind == "psnr":
            return max(-FARTHEST_GAP, min(FARTHEST_GAP, psnr - self.value))
        if max_error == 0 or self.value == 0:
            return FARTHEST_GAP if max_error == 0 else -FARTHEST_GAP
        return log(self.value) - log(max_error)

    def of(self, found: Estimate) -> float:
        """The excess of an estimate."""
        return self.excess(found.ratio, found.psnr, found.max_error)

    def moved(self, by: float) -> Goal:
        """The goal that is met where this one is exceeded by so much."""
        if self.kind == "psnr":
            return Goal(self.kind, self.value + by)
        return Goal(self.kind, self.value * exp(by if self.kind == "ratio" else -by))

    @property
    def near(self) -> float:
        """An excess that ends the search."""
        return 0.03 if self.kind == "psnr" else 0.01

    def __str__(self) -> str:
        """In words."""
        if self.kind == "ratio":
            return f"a ratio of {self.value:g}"
        return (
            f"{self.value:g} dB"
            if self.kind == "psnr"
            else f"an error of at most {self.value:g} on every voxel"
        )


def drawn(activity: Float64, count: int, seed: int) -> tuple[NDArray[np.int64], Float64]:
    """Which of the tiles, with activities of at least 0, are drawn, and the weights of these.

    About `count` tiles; all, with weights of 1, where there are no more.
    """
    if len(activity) <= count:
        return np.arange(len(activity)), np.ones(len(activity))
    chances = inclusion(activity, count)
    ends = np.cumsum(chances)
    start = np.random.default_rng(seed).random()
    rows = np.unique(np.searchsorted(ends, np.arange(start, ends[-1], 1.0), side="right"))
    rows = rows[rows < len(activity)]
    return rows, 1 / chances[rows]


def inclusion(activity: Float64, count: int) -> Float64:
    """Chances in proportion to activity, 1 at most, `count` in all."""
    share = activity / activity.max() if activity.max() > 0 else np.ones_like(activity)
    share = share + LEAST_SHARE * share.mean()
    certain = np.zeros(len(share), bool)
    while True:
        left = count - int(certain.sum())
        chances = np.where(certain, 1.0, left * share / share[~certain].sum())
        over = chances > 1
        if not over.any():
            return chances
        certain |= over


def estimated(sample: Sample, code: Code, number: float | None, each: Each = map) -> Estimate:
    """What a way to code tiles makes of the whole."""

    def tried(tile: Tile) -> tuple[float, float, float]:
        size, told = code(tile.values, tile.level)
        if told is tile.values:
            return tile.weight * size, 0.0, 0.0
        errors = np.subtract(told, tile.values, dtype=np.float64).ravel()
        return tile.weight * size, tile.weight * float(errors @ errors), float(np.abs(errors).max())

    sizes, squares, largest = zip(*each(tried, sample.tiles), strict=True)
    stored = sample.overhead + fsum(sizes)
    psnr = psnr_of(fsum(squares) / sample.voxels, sample.peak)
    return Estimate(number, stored, sample.source_bytes / stored, psnr, max(largest))


def searched(
    sample: Sample,
    make: Callable[[float], Code],
    scale: Setting,
    goal: Goal,
    *,
    known: Sequence[Estimate] = (),
    start: float | None = None,
    tried: Callable[[Estimate], None] = lambda found: None,
    each: Each = map,
) -> Estimate:
    """The estimate that meets a goal and exceeds it least; where none meets it, that of the setting that
    comes nearest. `known` are estimates of the same sample that were made before; `tried` is told of each
    new one. The search begins with the setting `start`, if there is one.
    """
    search = _Search(sample, make, scale, goal, {found.number: found for found in known}, start, tried, each)
    return search.run()


@dataclass
class _Search:
    """Brackets the goal between settings, as shares of the way from the finest to the coarsest."""

    sample: Sample
    make: Callable[[float], Code]
    scale: Setting
    goal: Goal
    known: dict[float | None, Estimate]
    start: float | None
    tried: Callable[[Estimate], None]
    each: Each

    def run(self) -> Estimate:
        below: Point | None = None
        above: Point | None = None
        met = [found for found in self.known.values() if self.goal.of(found) >= 0]
        best = min(met, key=self.goal.of, default=None)
        if best is not None and self.goal.of(best) <= self.goal.near:
            return best
        share, farther = self._first(), 1.2
        for _ in range(TRIALS):
            found = self._at(share)
            excess = self.goal.of(found)
            if excess >= 0 and (best is None or excess < self.goal.of(best)):
                best = found
            if 0 <= excess <= self.goal.near or self._is_end(share, excess):
                break
            if (excess >= 0) == self.goal.coarser_meets:
                above = share, excess
            else:
                below = share, excess
            if below is not None and above is not None:
                share = _between(below, above)
            else:
                share = min(1.0, max(0.0, share + farther * self._step(excess)))
                farther *= 2
        return best or self._at(1.0 if self.goal.coarser_meets else 0.0)

    def _first(self) -> float:
        numbers = [number for number in self.known if number is not None]
        if numbers:
            nearest = min(numbers, key=lambda number: abs(self.goal.of(self.known[number])))
        elif self.start is not None:
            nearest = self.start
        else:
            return 0.5
        return log(nearest / self.scale.finest) / log(self.scale.coarsest / self.scale.finest)

    def _at(self, share: float) -> Estimate:
        number = float(f"{self.scale.at(share):.6g}")
        if number not in self.known:
            self.known[number] = estimated(self.sample, self.make(number), number, self.each)
            self.tried(self.known[number])
        return self.known[number]

    def _is_end(self, share: float, excess: float) -> bool:
        """Whether the settings end here, and the goal lies beyond."""
        return share == (1.0 if (excess < 0) == self.goal.coarser_meets else 0.0)

    def _step(self, excess: float) -> float:
        """How far the goal is where everything changes as it does for fine steps.

        A PSNR falls by 20 dB where the setting grows tenfold; ratios and errors grow about as it does.
        """
        decades = abs(log10(self.scale.coarsest / self.scale.finest))
        step = excess / (20 if self.goal.kind == "psnr" else log(10)) / decades
        return -step if self.goal.coarser_meets else step


def _between(below: Point, above: Point) -> float:
    """Where a line through both ends of a bracket meets the goal, and not at its very ends."""
    (low, under), (high, over) = below, above
    place = low + (high - low) * under / (under - over) if under != over else low
    margin = NARROWEST * (high - low)
    return min(max(place, low + margin), high - margin)
