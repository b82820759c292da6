"""The setting of a compressor for what is wanted of its files: a ratio, a PSNR, or a bound on every voxel.

It is searched in its logarithm, between settings that do too much and too little, by the Illinois form of
false position (Dowell and Jarratt, "A modified regula falsi method for computing the root of an equation",
BIT 11 (1971)) and by halves where that is slow. For a large volume a mosaic of its blocks is searched first:
the whole is tried from where that ended. Of the files that were tried and do what is wanted the smallest is
the answer, or for a ratio the best: sizes and errors need not change quite evenly, nor always one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, log, log10

from storage.compressors.base import Compressor, spread
from storage.compressors.frame import Array, opened
from storage.compressors.mosaic import mosaic
from storage.compressors.report import Report, reported

TRIALS = 16
NEAR_RATIO = 1.005
"""A ratio that exceeds the target by less ends the search."""
NEAR_PSNR = 0.02
"""Likewise, dB."""
NEAR_BOUND = 1.02
"""Likewise of a bound over the largest error."""
PATIENCE = 6
"""Trials after which every second one halves what is left."""
NARROW = 2e-5
"""Likewise of settings, as a share of all that there are."""
ROUGHLY = 10.0
"""On a mosaic it ends at an excess so many times as large."""


class UnreachableTarget(ValueError):
    """No setting does what was wanted. `best` is what comes nearest."""

    def __init__(self, said: str, best: Fitted) -> None:
        super().__init__(said)
        self.best = best


@dataclass(frozen=True, eq=False)
class Fitted:
    """A compressed volume, by what setting, and how well it decodes (without SSIM)."""

    data: bytes
    setting: dict[str, float]
    report: Report

    @property
    def compressor(self) -> str:
        """Whose bytes they are."""
        return opened(self.data).compressor


@dataclass(frozen=True)
class Target:
    """What is wanted of a file. Its `kind` is the argument's name."""

    kind: str
    said: str
    excess: Callable[[Report], float]
    """By how much it is exceeded: below 0 where it is not met."""
    enough: float
    """An excess that ends the search."""
    coarser_meets: bool
    """Whether it is coarser settings that do it."""


def target(*, ratio: float | None = None, psnr: float | None = None, bound: float | None = None) -> Target:
    """One of: source bytes for each stored byte, at least; dB, at least; an error of every voxel, at most.
    Raises ValueError for none and for several, and for a number that nothing can meet.
    """
    given = {"ratio": ratio, "psnr": psnr, "bound": bound}
    wanted = {name: value for name, value in given.items() if value is not None}
    if len(wanted) != 1:
        raise ValueError(f"one of ratio, psnr and bound is the target, got {', '.join(wanted) or 'none'}")
    ((name, value),) = wanted.items()
    if not value >= 0:
        raise ValueError(f"{name} = {value}: must be at least 0")
    if name == "ratio":
        return Target(
            name,
            f"a ratio of {value:g}",
            lambda report: _log_ratio(report.ratio, value),
            log(NEAR_RATIO),
            coarser_meets=True,
        )
    if name == "psnr":
        return Target(
            name, f"{value:g} dB", lambda report: report.psnr - value, NEAR_PSNR, coarser_meets=False
        )
    return Target(
        name,
        f"an error of at most {value:g} on every voxel",
        lambda report: _log_ratio(value, report.max_error),
        log(NEAR_BOUND),
        coarser_meets=False,
    )


def fitted(
    compressor: Compressor,
    values: Array,
    *,
    ratio: float | None = None,
    psnr: float | None = None,
    bound: float | None = None,
    peak: float | None = None,
) -> Fitted:
    """Values compressed so that a target is met, and no better than that needs. The `peak` of a PSNR is the
    values' range unless it is given.

    Raises UnreachableTarget, which says what can be had, and as `target` and `Compressor.compress`.
    """
    wanted = target(ratio=ratio, psnr=psnr, bound=bound)
    part, guess = mosaic(values), None
    if part is not None and compressor.setting(values) is not None:
        guess = searched(compressor, part, wanted, spread(values) if peak is None else peak, rough=True)
    return searched(compressor, values, wanted, peak, guess).answer()


@dataclass(eq=False)
class Search:
    """What was tried of a compressor, and between which shares of its settings the target lies.

    The margin is the excess over `aim`, with the sign that makes it grow with the setting.
    """

    compressor: Compressor
    wanted: Target
    aim: float = 0.0
    best: Fitted | None = None
    nearest: Fitted | None = None
    """Of those that do not meet the target."""
    low: tuple[float, float] = (0.0, -inf)
    """The largest share with a margin below 0, and the margin."""
    high: tuple[float, float] = (1.0, inf)
    """The least share with one that is not."""
    slope: float | None = None
    """Of the margin, where it was last seen."""
    last: tuple[float, float] | None = None
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])

    def learn(self, share: float, trial: Fitted) -> None:
        """What came of a trial."""
        excess = self.wanted.excess(trial.report)
        if excess >= 0:
            self.best = _nearer(self.best, trial, self.wanted)
        elif self.nearest is None or excess > self.wanted.excess(self.nearest.report):
            self.nearest = trial
        margin = (excess - self.aim) if self.wanted.coarser_meets else (self.aim - excess)
        if self.last is not None and share != self.last[0] and isfinite(margin - self.last[1]):
            steep = (margin - self.last[1]) / (share - self.last[0])
            self.slope = steep if steep > 0 else self.slope
        again = self.last is not None and (margin < 0) == (self.last[1] < 0)
        self.last = share, margin
        side = 0 if margin < 0 else 1
        self.weights[side] = 1.0
        self.weights[1 - side] = self.weights[1 - side] / 2 if again else 1.0
        if side == 0:
            self.low = share, margin
        else:
            self.high = share, margin

    def next(self, number: int) -> float:
        """Where to try for the n-th time: between `low` and `high`."""
        (low, below), (high, above) = self.low, self.high
        width = high - low
        guess = low + width / 2
        if number < PATIENCE or number % 2:
            if isfinite(below) and isfinite(above):
                below, above = below * self.weights[0], above * self.weights[1]
                guess = low - below * width / (above - below)
            elif self.last is not None and self.slope is not None and isfinite(self.last[1]):
                guess = self.last[0] - self.last[1] / self.slope
        return min(max(guess, low + width / 100), high - width / 100)

    @property
    def found(self) -> Fitted:
        """The answer, or what comes nearest to it."""
        found = self.nearest if self.best is None else self.best
        assert found is not None
        return found

    def misses_by_at_most(self, factor: float) -> bool:
        """Of a ratio or a bound; of a PSNR the dB that this is of an amplitude."""
        decibels = self.wanted.kind == "psnr"
        return self.wanted.excess(self.found.report) >= -(20 * log10(factor) if decibels else log(factor))

    def answer(self) -> Fitted:
        """What meets the target. Raises UnreachableTarget."""
        if self.best is None:
            raise unreachable(self.compressor.name, self.found, self.wanted)
        return self.best


def searched(
    compressor: Compressor,
    values: Array,
    wanted: Target,
    peak: float | None,
    guess: Search | None = None,
    *,
    rough: bool = False,
) -> Search:
    """All that was tried on values, after a `guess` on a part of them. Raises as `Compressor.compress`."""
    enough = wanted.enough * (ROUGHLY if rough else 1)
    search = Search(compressor, wanted, enough / 2)
    scale = compressor.setting(values)
    if scale is None:
        search.learn(0.0, tried(compressor, values, {}, peak))
        return search
    share = 0.5
    if guess is not None and guess.last is not None:
        share, search.slope = guess.last[0], guess.slope
    for number in range(1, TRIALS + 1):
        trial = tried(compressor, values, {scale.name: scale.at(share)}, peak)
        search.learn(share, trial)
        if 0 <= wanted.excess(trial.report) <= enough or search.high[0] - search.low[0] < NARROW:
            break
        share = search.next(number)
    if search.best is None:
        end = 1.0 if wanted.coarser_meets else 0.0
        search.learn(end, tried(compressor, values, {scale.name: scale.at(end)}, peak))
    return search


def tried(compressor: Compressor, values: Array, setting: dict[str, float], peak: float | None) -> Fitted:
    """A file, and what it decodes to. Raises as `Compressor.compress`."""
    data = compressor.compress(values, **setting)
    told = compressor.decompress(data)
    return Fitted(data, setting, reported(values, told, len(data), peak=peak, with_ssim=False))


def unreachable(name: str, nearest: Fitted, wanted: Target) -> UnreachableTarget:
    """The error, which says what can be had."""
    report = nearest.report
    by = ", ".join(f"{key} = {number:g}" for key, number in nearest.setting.items()) or "without loss"
    return UnreachableTarget(
        f"{name} cannot reach {wanted.said} on these values; nearest is a ratio of "
        f"{report.ratio:.4g}, {report.psnr:.2f} dB, an error of at most {report.max_error:g} ({by})",
        nearest,
    )


def _nearer(best: Fitted | None, trial: Fitted, wanted: Target) -> Fitted:
    """The better of two files that reach a ratio; the smaller of two that are good enough."""
    if best is None:
        return trial
    if wanted.kind == "ratio" and trial.report.psnr != best.report.psnr:
        return max(best, trial, key=lambda one: one.report.psnr)
    return min(best, trial, key=lambda one: len(one.data))


def _log_ratio(above: float, below: float) -> float:
    """Of numbers of at least 0; infinite where one of them is 0."""
    if below == 0:
        return inf
    return log(above / below) if above > 0 else -inf
