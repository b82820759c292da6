"""The setting for which a goal is met and hardly exceeded: a search over one number.

It goes by the number's logarithm, between settings that do too much and too little, by the Illinois form of
false position (Dowell and Jarratt, "A modified regula falsi method for computing the root of an equation",
BIT 11 (1971)), and by halves where that is slow. Until there are both, it steps on as far as the excess
promises, at first as if everything changed as it does with a quantiser's steps, then as it was seen to, and
always somewhat farther: what is beyond the goal is worth as much as what is before it. Where the goal lies in
a jump, the search ends beside it, and looks a little beyond: what compressors do need not change one way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, log10

from storage.compressors.base import Setting
from storage.compressors.goals import Goal

TRIALS = 16
PATIENCE = 6
"""Trials after which every second one halves what is left."""
NARROW = 1.002
"""The numbers on both sides of a jump, one over the other."""
BEYOND = (1.01, 1.03)
"""How far from a jump numbers are tried, on the side where the goal was not met."""
INSIDE = 0.05
"""How near to the ends of what is left the next trial may lie, as a share of it."""
FARTHER, GROWTH = 1.1, 1.5
"""What the first step is longer than it promises to be, and each one after it than the one before."""


@dataclass(frozen=True)
class Start:
    """Where a search begins, a share of the way from the finest setting to the coarsest, and by how much the
    excess would change on all of the way, if that is known.
    """

    share: float = 0.5
    slope: float | None = None


def sought(
    excess: Callable[[float], float],
    scale: Setting,
    goal: Goal,
    *,
    enough: float,
    start: Start | None = None,
    known: Mapping[float, float] | None = None,
) -> Start:
    """Try settings until one exceeds the goal by `enough` at most. Returns where that was.

    `excess` measures by how much a setting's number, of six digits, exceeds the goal (`Goal.excess`), and
    keeps what it likes of what it saw; it is called `TRIALS` times at most, and for what lies beyond.
    `known` are excesses of numbers that need not be tried. Where no number meets the goal, the last one is
    that end of the scale which should come nearest.
    """
    search = _Search(scale, goal, enough, start or Start())
    for number, told in sorted((known or {}).items(), key=lambda one: -abs(one[1])):
        search.learn(scale.share(number), told)
    for trial in range(TRIALS):
        if search.is_over():
            break
        share = search.next(trial)
        search.learn(share, excess(_number(scale, share)))
    for share in search.beyond():
        search.learn(share, excess(_number(scale, share)))
    end = 1.0 if goal.coarser_meets else 0.0
    if not search.met and not search.knows(end):
        search.learn(end, excess(_number(scale, end)))
    return search.where()


Point = tuple[float, float]
"""A share of the way to the coarsest setting, and a margin."""


@dataclass(eq=False)
class _Search:
    """Between which shares the goal lies.

    A margin is the excess over the middle of what is enough, with the sign that makes it grow with the share.
    """

    scale: Setting
    goal: Goal
    enough: float
    start: Start
    met: bool = False
    near: bool = False
    low: Point | None = None
    """The largest share with a margin below 0."""
    high: Point | None = None
    """The least share with one that is not."""
    last: Point | None = None
    seen: float | None = None
    """The margin's slope, as it was last seen."""
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Of the margins of `low` and `high`: an end that stays twice counts for half."""

    def __post_init__(self) -> None:
        self.seen = self.start.slope

    def learn(self, share: float, excess: float) -> None:
        """What came of a share between `low` and `high`; others say nothing new."""
        self.met |= excess >= 0
        self.near |= 0 <= excess <= self.enough
        margin = excess - self.enough / 2
        margin = margin if self.goal.coarser_meets else -margin
        if not self._floor <= share <= self._ceiling:
            return
        self._measure_slope(share, margin)
        side = 0 if margin < 0 else 1
        again = self.last is not None and (margin < 0) == (self.last[1] < 0)
        self.weights[side] = 1.0
        self.weights[1 - side] = self.weights[1 - side] / 2 if again else 1.0
        self.last = share, margin
        if side == 0:
            self.low = self.last
        else:
            self.high = self.last

    def _measure_slope(self, share: float, margin: float) -> None:
        if self.last is None or share == self.last[0] or not isfinite(margin - self.last[1]):
            return
        slope = (margin - self.last[1]) / (share - self.last[0])
        self.seen = slope if slope > 0 else self.seen

    def next(self, trial: int) -> float:
        """Where to try next, the n-th time from 0 on."""
        if self.last is None:
            return self.start.share
        if self.low is None or self.high is None:
            return self._onward(FARTHER * GROWTH**trial)
        (low, below), (high, above) = self.low, self.high
        width = high - low
        by_halves = (trial >= PATIENCE and trial % 2 == 0) or not isfinite(below + above)
        if by_halves:
            return low + width / 2
        below, above = below * self.weights[0], above * self.weights[1]
        guess = low - below * width / (above - below)
        return min(max(guess, low + INSIDE * width), high - INSIDE * width)

    def _onward(self, farther: float) -> float:
        """Beyond the last share, to the end of the scale at most; half the way where nothing is promised."""
        assert self.last is not None
        share, margin = self.last
        if not isfinite(margin):
            return (share + (1.0 if margin < 0 else 0.0)) / 2
        slope = self.seen or self.goal.per_decade * self.scale.decades
        return min(1.0, max(0.0, share - farther * margin / slope))

    def is_over(self) -> bool:
        """Whether there is a setting that is near enough, or none left to be tried."""
        return self.near or self._is_narrow() or self._is_beyond()

    def _is_narrow(self) -> bool:
        return self._ceiling - self._floor < log10(NARROW) / self.scale.decades

    def beyond(self) -> list[float]:
        """What is to be tried at last, where it ends at a jump."""
        if self.near or self.low is None or self.high is None or not self._is_narrow():
            return []
        sense = -1 if self.goal.coarser_meets else 1
        end, _ = self.low if self.goal.coarser_meets else self.high
        shares = [end + sense * log10(times) / self.scale.decades for times in BEYOND]
        return [share for share in shares if 0 <= share <= 1]

    def _is_beyond(self) -> bool:
        """Whether the scale ends on this side of the goal."""
        return (self.low is not None and self.low[0] == 1.0) or (
            self.high is not None and self.high[0] == 0.0
        )

    def knows(self, end: float) -> bool:
        """Whether an end of the scale was tried."""
        return any(point is not None and point[0] == end for point in (self.low, self.high))

    def where(self) -> Start:
        """Of the last trial."""
        return Start(self.start.share if self.last is None else self.last[0], self.seen)

    @property
    def _floor(self) -> float:
        return 0.0 if self.low is None else self.low[0]

    @property
    def _ceiling(self) -> float:
        return 1.0 if self.high is None else self.high[0]


def _number(scale: Setting, share: float) -> float:
    return float(f"{scale.at(share):.6g}")
