"""Ladders: choices for all layers at once, from dense down to the coarsest, by one common number.

Without a curvature layers are compared by relative errors, and the common number is the error of each. In a
curvature's metric squared errors are parts of one sum, the change of the answers, and the least sum for a
budget has a common slope: what a layer would gain by one number more (a Lagrange multiplier; Boyd &
Vandenberghe 2004, section 5.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from models.compression.search import Choice, LayerSearch

LEVELS = tuple(level / 100 for level in range(1, 99))
"""Relative errors of a layer that are tried."""
STRIDES = (12, 6, 3, 1)
"""Of levels, when the best of a layer is looked for: from far apart to neighbours."""
SLOPES = tuple(10 ** (step / 10) for step in range(-100, 61))
"""Squared error for one number, in multiples of the network's energy over its numbers."""

Weigh = Callable[[LayerSearch, Choice], float]


class Ladder(Protocol):
    """Steps from fine to coarse; -1 is dense."""

    searches: Sequence[LayerSearch]

    @property
    def steps(self) -> int:
        """How many there are."""

    def at(self, step: int) -> list[Choice]:
        """A choice for each layer."""


class CommonError:
    """The smallest forms within one relative error. A `Ladder`."""

    def __init__(self, searches: Sequence[LayerSearch]) -> None:
        self.searches = searches

    @property
    def steps(self) -> int:
        """See `Ladder`."""
        return len(LEVELS)

    def at(self, step: int) -> list[Choice]:
        """See `Ladder`."""
        return [search.dense if step < 0 else search.at(LEVELS[step]) for search in self.searches]


class CommonSlope:
    """The forms of least squared error plus slope times weight. A `Ladder`."""

    def __init__(self, searches: Sequence[LayerSearch], weigh: Weigh) -> None:
        self.searches, self._weigh = searches, weigh
        weight = sum(weigh(search, search.dense) for search in searches)
        self._unit = sum(search.energy for search in searches) / max(1, weight)
        self._made: dict[int, list[Choice]] = {}

    @property
    def steps(self) -> int:
        """See `Ladder`."""
        return len(SLOPES)

    def at(self, step: int) -> list[Choice]:
        """See `Ladder`."""
        if step < 0:
            return [search.dense for search in self.searches]
        if step not in self._made:
            slope = self._unit * SLOPES[step]
            self._made[step] = [self._best(search, slope) for search in self.searches]
        return self._made[step]

    def within(self, error2: float) -> list[Choice]:
        """The choices at the largest slope whose squared errors are `error2` together at most."""
        low, high = -1, self.steps
        while high - low > 1:
            middle = (low + high) // 2
            fits = sum(choice.error2 for choice in self.at(middle)) <= error2
            low, high = (middle, high) if fits else (low, middle)
        return self.at(low)

    def _best(self, search: LayerSearch, slope: float) -> Choice:
        """Of dense and all levels, looked for by ever smaller strides around the best so far."""

        def price(choice: Choice) -> float:
            return choice.error2 + slope * self._weigh(search, choice)

        levels = range(0, len(LEVELS), STRIDES[0])
        best = min(levels, key=lambda level: price(search.at(LEVELS[level])))
        for stride in STRIDES[1:]:
            near = (best + step * stride for step in (-2, -1, 0, 1, 2))
            known = sorted({level for level in near if 0 <= level < len(LEVELS)})
            best = min(known, key=lambda level: price(search.at(LEVELS[level])))
        return min((search.dense, search.at(LEVELS[best])), key=price)
