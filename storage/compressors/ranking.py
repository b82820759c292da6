"""Who compresses best for a goal, and who may: the rules by which a choice among compressors is made.

They are the same for files of a whole volume (`auto`) and for what a sample of a stored one promises
(`storage.derived_choice`). A choice looks at all compressors roughly first, and then well at those who are
hopeful; what is best of these, it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, log10
from typing import Generic, TypeVar

from storage.compressors.goals import Goal, Measured

MOST = 3
"""Lossy compressors that are looked at well."""
DECADE = 30.0
"""dB for a tenth of the size, at most, by which files of unequal sizes and errors are compared roughly."""

Who = TypeVar("Who")


@dataclass(frozen=True)
class Candidate(Generic[Who]):
    """Somebody, and what came of the values as he would compress them."""

    who: Who
    lossless: bool
    found: Measured


def rank(found: Measured, goal: Goal) -> tuple[bool, float, float]:
    """Least is best: what meets the goal, for a ratio by how well it decodes, else by its size; then what
    does not, the nearest first.
    """
    excess = goal.of(found)
    if excess < 0:
        return True, -excess, found.stored_bytes
    return False, -found.psnr if goal.kind == "ratio" else found.stored_bytes, found.stored_bytes


def hopeful(rough: Sequence[Candidate[Who]], goal: Goal, margin: float) -> list[Candidate[Who]]:
    """Who may be the best, where what was found is uncertain by a factor of `margin` in size: lossless ones
    that may meet a ratio, and a few others by what they did; all where nobody comes near the goal.
    """
    able = [one for one in rough if _misses_by_at_most(margin, one.found, goal)]
    apart = [one for one in able if one.lossless and goal.kind == "ratio"]
    rivals = sorted((one for one in able if one not in apart), key=lambda one: _cost(one.found, goal))
    least = _cost(rivals[0].found, goal) if rivals else inf
    near = [one for one in rivals if _cost(one.found, goal) <= least + log10(margin)]
    return [*apart, *near[:MOST]] or list(rough)


def _misses_by_at_most(factor: float, found: Measured, goal: Goal) -> bool:
    """A ratio or a bound; of a PSNR the dB that this is of an amplitude."""
    return goal.of(found) >= -(20 * log10(factor) if goal.kind == "psnr" else log(factor))


def _cost(found: Measured, goal: Goal) -> float:
    """The logarithm of a size, less what its quality would save beyond what is wanted."""
    decibels = {"ratio": found.psnr, "psnr": found.psnr - goal.value, "bound": 0.0}[goal.kind]
    return log10(found.stored_bytes) - (decibels / DECADE if isfinite(decibels) else 0.0)
