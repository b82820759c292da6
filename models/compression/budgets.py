"""Forms of all layers within budgets: a common step of a ladder by bisection, then exchanges.

Storage over a ladder's steps is a staircase, and a budget lies between two of them. From the coarser one,
layers go to the finer one by what they gain in squared error for each number that they cost, as long as they
fit, the best value first; what is left goes to single ranks and to finer errors of single layers. With
several budgets a step fits where all do, prices are mixtures of them, and some mixtures are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from models.compression.ladders import LEVELS, Ladder
from models.compression.search import Choice, LayerSearch
from models.errors import InvalidConfig
from models.rsdtr.candidates import MODES, RingConfig

SLACK = 0.01
"""The share of a budget that may be left before errors of single layers are refined."""
REFINEMENTS = 5
"""Bisections of a single layer's error."""
SHARES = tuple(2.0**power for power in range(-4, 5))
"""Of a further limit beside the first, that are tried."""


@dataclass(frozen=True)
class BudgetConfig:
    """Targets for the whole model, one or more of three: `pcr`, its parameters over those of the compressed
    one, and the most `macs` (of what runs, for the example input) or `bytes` (of its tensors).

    A PCR is met or passed, by 3 % at most where it is the only target and the layers' ranks are fine enough.
    `modes`, `low_rank` and `canonical` are those of `RingConfig`. Raises InvalidConfig for none, and for
    numbers that are no targets.
    """

    pcr: float | None = None
    macs: int | None = None
    bytes: int | None = None
    modes: tuple[int, ...] = MODES
    low_rank: bool = True
    canonical: bool = False

    def __post_init__(self) -> None:
        if all(value is None for value in (self.pcr, self.macs, self.bytes)):
            raise InvalidConfig("pcr", self.pcr, "given, or macs, or bytes: one of the three at least")
        if self.pcr is not None and not 1 <= self.pcr < float("inf"):
            raise InvalidConfig("pcr", self.pcr, "at least 1, and finite")
        for setting in ("macs", "bytes"):
            value = getattr(self, setting)
            if value is not None and not 1 <= value < float("inf"):
                raise InvalidConfig(setting, value, "at least 1, and finite")
        self.ring()

    def ring(self) -> RingConfig:
        """The search for one layer."""
        return RingConfig(modes=self.modes, low_rank=self.low_rank, canonical=self.canonical)


@dataclass(frozen=True)
class Limit:
    """The `most` that all layers may weigh together. `refuse` makes an error of the least that they can."""

    most: int
    weigh: Callable[[LayerSearch, Choice], int]
    refuse: Callable[[int], InvalidConfig]


@dataclass(frozen=True)
class Prices:
    """What choices cost under several limits: the weight by the first one, and by each other so many times
    (`shares`) the same share of it.
    """

    limits: Sequence[Limit]
    shares: tuple[float, ...]

    def __call__(self, search: LayerSearch, choice: Choice) -> float:
        """Of a choice."""
        first, *others = self.limits
        more = (
            share * limit.weigh(search, choice) * first.most / max(1, limit.most)
            for limit, share in zip(others, self.shares, strict=True)
        )
        return first.weigh(search, choice) + sum(more)


def within(limits: Sequence[Limit], ladder: Callable[[Prices], Ladder]) -> list[Choice]:
    """A choice for each layer, within all limits, of the least squared error over some shares of them.

    Raises what a limit makes of the least that the layers can weigh.
    """
    found = [_filled(ladder(prices), prices) for prices in _mixtures(limits)]
    return min(found, key=lambda choices: sum(choice.error2 for choice in choices))


def _mixtures(limits: Sequence[Limit]) -> list[Prices]:
    return [Prices(limits, shares) for shares in product(SHARES, repeat=len(limits) - 1)]


def _filled(ladder: Ladder, prices: Prices) -> list[Choice]:
    """Choices by one ladder, and by what they cost."""
    filling = _Filling(ladder.searches, prices)
    if not filling.fits():
        fine, coarse = _bracket(ladder, filling)
        filling.chosen = ladder.at(coarse)
        filling.exchange(ladder.at(fine))
        if filling.left() > SLACK:
            filling.refine()
        filling.raise_ranks()
    return filling.chosen


def _bracket(ladder: Ladder, filling: _Filling) -> tuple[int, int]:
    """Neighbouring steps, beyond a limit and within all; -1 is dense."""
    low, high = -1, ladder.steps - 1
    filling.chosen = ladder.at(high)
    for limit, spare in zip(filling.limits, filling.spare(), strict=True):
        if spare < 0:
            raise limit.refuse(limit.most - spare)
    while high - low > 1:
        middle = (low + high) // 2
        filling.chosen = ladder.at(middle)
        low, high = (low, middle) if filling.fits() else (middle, high)
    return low, high


class _Filling:
    """Choices, dense at first, and what they leave of the limits."""

    def __init__(self, searches: Sequence[LayerSearch], prices: Prices) -> None:
        self.searches, self.prices, self.limits = searches, prices, prices.limits
        self.chosen = [search.dense for search in searches]

    def spare(self) -> list[int]:
        """Of each limit; negative beyond it."""
        pairs = list(zip(self.searches, self.chosen, strict=True))
        return [limit.most - sum(limit.weigh(*pair) for pair in pairs) for limit in self.limits]

    def fits(self) -> bool:
        """Whether the choices are within all limits."""
        return min(self.spare()) >= 0

    def left(self) -> float:
        """The smallest share of a limit that is left."""
        return min(spare / max(1, limit.most) for spare, limit in zip(self.spare(), self.limits, strict=True))

    def exchange(self, finer: Sequence[Choice]) -> None:
        """Take the finer choice of the layers where it is worth most."""
        prices = [self._price(k, new) for k, new in enumerate(finer)]
        gains = [old.error2 - new.error2 for old, new in zip(self.chosen, finer, strict=True)]
        order = sorted(range(len(finer)), key=lambda k: (prices[k] > 0, -gains[k] / max(1, prices[k]), k))
        for k in order:
            if gains[k] > 0 and self._affords(k, finer[k]):
                self.chosen[k] = finer[k]

    def refine(self) -> None:
        """Bisect the errors of single layers for the finest that fits, the coarsest layers first."""
        for k in sorted(range(len(self.chosen)), key=lambda k: (-self.chosen[k].error2, k)):
            form = self.chosen[k].form
            if form is None or form.eps is None or self.left() <= SLACK:
                continue
            fine, coarse = LEVELS[0], form.eps
            for _ in range(REFINEMENTS):
                middle = (fine + coarse) / 2
                found = self.searches[k].at(middle)
                if not self._affords(k, found):
                    fine = middle
                    continue
                coarse = middle
                if found.error2 < self.chosen[k].error2:
                    self.chosen[k] = found

    def raise_ranks(self) -> None:
        """A rank more where it is worth most, until none fits."""
        while True:
            best: tuple[float, int, Choice] | None = None
            for k, search in enumerate(self.searches):
                more = search.raised(self.chosen[k])
                if more is None or not self._affords(k, more):
                    continue
                worth = (self.chosen[k].error2 - more.error2) / max(1, self._price(k, more))
                if worth > 0 and (best is None or worth > best[0]):
                    best = (worth, k, more)
            if best is None:
                return
            self.chosen[best[1]] = best[2]

    def _price(self, k: int, new: Choice) -> float:
        """What a layer takes more by another choice."""
        search = self.searches[k]
        return self.prices(search, new) - self.prices(search, self.chosen[k])

    def _affords(self, k: int, new: Choice) -> bool:
        """Whether the limits have room for another choice of a layer."""
        search, old = self.searches[k], self.chosen[k]
        return all(
            limit.weigh(search, new) - limit.weigh(search, old) <= spare
            for limit, spare in zip(self.limits, self.spare(), strict=True)
        )
