"""A setting for a volume that is too large to be tried as a whole, found on a sample of its tiles.

Tile i is drawn with probability pi_i in proportion to how much is going on in it, systematically along the
volume (Madow, "On the theory of systematic sampling, II", Ann. Math. Statist. 20 (1949)), and stands for
1 / pi_i tiles: sums over all tiles are estimated without bias (Horvitz and Thompson, "A generalization of
sampling without replacement", J. Amer. Statist. Assoc. 47 (1952)), and well, as bytes grow with what is going
on. Where all tiles are drawn the sums are exact. The setting is searched (`search`) with these estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import Setting
from storage.compressors.frame import Array
from storage.compressors.goals import Goal
from storage.compressors.report import psnr_of, squared, unit_of
from storage.compressors.search import Start, sought

Float64 = NDArray[np.float64]
Code = Callable[[Array, int], tuple[int, Array]]
"""How many bytes a tile of a level takes, and what they decode to; where nothing is lost, and of coarser
levels, the tile itself.
"""
Each = Callable[..., Iterator[Any]]
"""As `map`, perhaps in parallel."""

SAMPLED = 2.0
"""A search ends at an excess so many times as large as with all of the values: estimates are no better."""
LEAST_SHARE = 0.05
"""What a tile without activity counts for, over the mean of all."""


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

    unit = unit_of(sample.peak)

    def tried(tile: Tile) -> tuple[float, float, float]:
        size, told = code(tile.values, tile.level)
        if told is tile.values:
            return tile.weight * size, 0.0, 0.0
        errors = np.subtract(told, tile.values, dtype=np.float64)
        return tile.weight * size, tile.weight * squared(errors, unit), float(np.abs(errors).max())

    sizes, squares, largest = zip(*each(tried, sample.tiles), strict=True)
    stored = sample.overhead + fsum(sizes)
    psnr = psnr_of(fsum(squares) / sample.voxels, sample.peak / unit)
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
    found = {one.number: one for one in known if one.number is not None}

    def excess(number: float) -> float:
        if number not in found:
            found[number] = estimated(sample, make(number), number, each)
            tried(found[number])
        return goal.of(found[number])

    sought(
        excess,
        scale,
        goal,
        enough=SAMPLED * goal.near,
        start=None if start is None else Start(scale.share(start)),
        known={number: goal.of(one) for number, one in found.items()},
    )
    met = [one for one in found.values() if goal.of(one) >= 0]
    return min(met, key=goal.of) if met else max(found.values(), key=goal.of)
