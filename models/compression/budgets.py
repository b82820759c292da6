"""Forms of all layers within a budget: a common step of a ladder by bisection, then exchanges.

Storage over a ladder's steps is a staircase, and a budget lies between two of them. From the coarser one,
layers go to the finer one by what they gain in squared error for each number that they cost, as long as they
fit, the best value first; what is left goes to single ranks and to finer errors of single layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.compression.ladders import LEVELS, Ladder, Weigh
from models.compression.search import Choice, LayerSearch
from models.errors import InvalidConfig
from models.rsdtr.candidates import MODES, RingConfig

SLACK = 0.01
"""The share of a budget that may be left before errors of single layers are refined."""
REFINEMENTS = 5
"""Bisections of a single layer's error."""


@dataclass(frozen=True)
class BudgetConfig:
    """A target for the whole model, one of three: `pcr`, its parameters over those of the compressed one,
    or the most `macs` (of what runs, for the example input) or `bytes` (of its tensors).

    A PCR is met or passed, by 3 % at most where the layers' ranks are fine enough. `modes` and `low_rank` are
    those of `RingConfig`. Raises InvalidConfig for none or several, and for numbers that are no targets.
    """

    pcr: float | None = None
    macs: int | None = None
    bytes: int | None = None
    modes: tuple[int, ...] = MODES
    low_rank: bool = True

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.pcr, self.macs, self.bytes)) != 1:
            raise InvalidConfig("pcr", self.pcr, "given, or macs, or bytes: one of the three")
        if self.pcr is not None and not 1 <= self.pcr < float("inf"):
            raise InvalidConfig("pcr", self.pcr, "at least 1, and finite")
        for setting in ("macs", "bytes"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise InvalidConfig(setting, value, "at least 1")
        self.ring()

    def ring(self) -> RingConfig:
        """The search for one layer."""
        return RingConfig(modes=self.modes, low_rank=self.low_rank)


def within(ladder: Ladder, limit: int, weigh: Weigh, refuse: Callable[[int], InvalidConfig]) -> list[Choice]:
    """A choice for each layer of the ladder, of `limit` together at most as they are weighed.

    Raises what `refuse` makes of the least that they can weigh.
    """
    searches = ladder.searches
    chosen = [search.dense for search in searches]
    if _weight(searches, chosen, weigh) <= limit:
        return chosen
    fine, coarse = _bracket(ladder, limit, weigh, refuse)
    chosen, finer = ladder.at(coarse), ladder.at(fine)
    spare = limit - _weight(searches, chosen, weigh)
    spare = _exchanged(searches, chosen, finer, spare, weigh)
    if spare > SLACK * limit:
        spare = _refined(searches, chosen, spare, weigh, SLACK * limit)
    _raised(searches, chosen, spare, weigh)
    return chosen


def _bracket(
    ladder: Ladder, limit: int, weigh: Weigh, refuse: Callable[[int], InvalidConfig]
) -> tuple[int, int]:
    """Neighbouring steps, too heavy and within the limit; -1 is dense."""
    low, high = -1, ladder.steps - 1

    def weight(step: int) -> int:
        return _weight(ladder.searches, ladder.at(step), weigh)

    if (least := weight(high)) > limit:
        raise refuse(least)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if weight(middle) <= limit else (middle, high)
    return low, high


def _exchanged(
    searches: Sequence[LayerSearch], chosen: list[Choice], finer: list[Choice], spare: int, weigh: Weigh
) -> int:
    """Take the finer choice of the layers where it is worth most, in place; returned is what is spare."""
    prices = [
        weigh(search, new) - weigh(search, old)
        for search, old, new in zip(searches, chosen, finer, strict=True)
    ]
    gains = [old.error2 - new.error2 for old, new in zip(chosen, finer, strict=True)]
    order = sorted(range(len(chosen)), key=lambda k: (prices[k] > 0, -gains[k] / max(1, prices[k]), k))
    for k in order:
        if gains[k] > 0 and prices[k] <= spare:
            chosen[k], spare = finer[k], spare - prices[k]
    return spare


def _refined(
    searches: Sequence[LayerSearch], chosen: list[Choice], spare: int, weigh: Weigh, enough: float
) -> int:
    """Bisect the errors of single layers for the finest that fits, the coarsest layers first, in place."""
    order = sorted(range(len(chosen)), key=lambda k: (-chosen[k].error2, k))
    for k in order:
        form = chosen[k].form
        if form is None or form.eps is None or spare <= enough:
            continue
        fine, coarse = LEVELS[0], form.eps
        for _ in range(REFINEMENTS):
            middle = (fine + coarse) / 2
            found = searches[k].at(middle)
            price = weigh(searches[k], found) - weigh(searches[k], chosen[k])
            if price > spare:
                fine = middle
                continue
            coarse = middle
            if found.error2 < chosen[k].error2:
                chosen[k], spare = found, spare - price
    return spare


def _raised(searches: Sequence[LayerSearch], chosen: list[Choice], spare: int, weigh: Weigh) -> None:
    """A rank more where it is worth most, in place, until none fits."""
    while True:
        best: tuple[float, int, Choice, int] | None = None
        for k, search in enumerate(searches):
            more = search.raised(chosen[k])
            price = 0 if more is None else weigh(search, more) - weigh(search, chosen[k])
            if more is None or price > spare:
                continue
            worth = (chosen[k].error2 - more.error2) / max(1, price)
            if worth > 0 and (best is None or worth > best[0]):
                best = (worth, k, more, price)
        if best is None:
            return
        _, k, chosen[k], price = best
        spare -= price


def _weight(searches: Sequence[LayerSearch], chosen: Sequence[Choice], weigh: Weigh) -> int:
    return sum(weigh(search, choice) for search, choice in zip(searches, chosen, strict=True))
