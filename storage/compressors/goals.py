"""What is wanted of compressed bytes: a ratio, a PSNR, or a bound on the error of every voxel."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log
from typing import Protocol

NEAR = {"ratio": log(1.005), "psnr": 0.02, "bound": log(1.02)}
PER_DECADE = {"ratio": log(10), "psnr": 20.0, "bound": log(10)}


class Measured(Protocol):
    """What came of values, or what it is estimated to be."""

    @property
    def stored_bytes(self) -> float:
        """All that is kept of them."""

    @property
    def ratio(self) -> float:
        """Source bytes for each stored byte."""

    @property
    def psnr(self) -> float:
        """In dB; infinite where nothing changed."""

    @property
    def max_error(self) -> float:
        """Of any voxel, in units of the values."""


@dataclass(frozen=True)
class Goal:
    """A `ratio` of at least `value`, a `psnr` of at least so many dB, or a `bound` on the largest error,
    whichever `kind` says.
    """

    kind: str
    value: float

    @property
    def coarser_meets(self) -> bool:
        """Whether it is coarser settings that meet it."""
        return self.kind == "ratio"

    @property
    def near(self) -> float:
        """An excess that nobody minds."""
        return NEAR[self.kind]

    @property
    def per_decade(self) -> float:
        """By how much an excess changes, about, where the steps of a quantiser grow tenfold: a PSNR falls by
        20 dB, ratios and errors grow as the steps do.
        """
        return PER_DECADE[self.kind]

    def excess(self, ratio: float, psnr: float, max_error: float) -> float:
        """By how much it is exceeded, below 0 where it is not met: in dB for a PSNR, else a logarithm.
        Infinite where nothing changed, and where nothing can meet it.
        """
        if self.kind == "ratio":
            return _log_ratio(ratio, self.value)
        if self.kind == "psnr":
            return psnr - self.value
        return _log_ratio(self.value, max_error)

    def of(self, found: Measured) -> float:
        """The excess of what was measured."""
        return self.excess(found.ratio, found.psnr, found.max_error)

    def moved(self, by: float) -> Goal:
        """The goal that is met where this one is exceeded by so much."""
        if self.kind == "psnr":
            return Goal(self.kind, self.value + by)
        return Goal(self.kind, self.value * exp(by if self.kind == "ratio" else -by))

    def __str__(self) -> str:
        """In words."""
        if self.kind == "ratio":
            return f"a ratio of {self.value:g}"
        if self.kind == "psnr":
            return f"{self.value:g} dB"
        return f"an error of at most {self.value:g} on every voxel"


def goal(*, ratio: float | None = None, psnr: float | None = None, bound: float | None = None) -> Goal:
    """The one that is given. Raises ValueError for none and for several, and for a number below 0."""
    given = {"ratio": ratio, "psnr": psnr, "bound": bound}
    wanted = {kind: value for kind, value in given.items() if value is not None}
    if len(wanted) != 1:
        raise ValueError(f"one of ratio, psnr and bound is the target, got {', '.join(wanted) or 'none'}")
    ((kind, value),) = wanted.items()
    if not value >= 0:
        raise ValueError(f"{kind} = {value}: must be at least 0")
    return Goal(kind, value)


def _log_ratio(above: float, below: float) -> float:
    """Of numbers of at least 0; infinite where one of them is 0."""
    if below == 0:
        return inf
    return log(above) - log(below) if above > 0 else -inf
