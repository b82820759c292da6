"""Which of several regressors to take: the simplest that none beats.

From each candidate's losses out of fold, row by row over the same rows. One beats another if the interval of
the mean difference of their losses, by a paired bootstrap of patients, lies on its side of zero; each pair
has that level by itself. The level is that of one standard error either way (Breiman et al., Classification
and Regression Trees, 1984, section 3.4.3: the one-standard-error rule): with the few dozen patients of a
small cohort hardly anything is beaten at 95 %, and the simplest would be taken however poor it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidConfig, InvalidShape
from models.learning.metrics import DRAWS, Interval, paired_difference
from models.types import Array

AUTO = "auto"
"""What a user asks for to have one chosen."""
ONE_STANDARD_ERROR = 0.68


@dataclass(frozen=True)
class Candidate:
    """A regressor's mean loss, who beats it by how much less loss, and why it was taken or not."""

    name: str
    loss: float
    beaten_by: Mapping[str, Interval]
    reason: str


@dataclass(frozen=True)
class Selection:
    """The name that was chosen, and all candidates, from simple to complex."""

    chosen: str
    level: float
    candidates: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON: a table of reasons."""
        return asdict(self)


def auto(
    losses: Mapping[str, Float64[Array, "*seeds n"]],
    patients: Sequence[str],
    *,
    seed: int,
    level: float = ONE_STANDARD_ERROR,
    draws: int = DRAWS,
) -> Selection:
    """The first of `losses`, ordered from simple to complex, that no other beats.

    Losses are (n,), or (seeds, n). Where each is beaten by another (which intervals do not exclude), the one
    of least mean loss. Raises InvalidConfig for no candidates, InvalidShape for losses of other rows.
    """
    if not losses:
        raise InvalidConfig("candidates", [], "one regressor or more")
    if len(rows := {values.shape[-1] for values in losses.values()}) > 1:
        raise InvalidShape(f"candidates have losses of {sorted(rows)} rows: compare them on the same")
    means = {name: float(values.mean()) for name, values in losses.items()}
    gains = {
        name: {
            other: paired_difference(own, theirs, patients, seed=seed, level=level, draws=draws)
            for other, theirs in losses.items()
            if other != name
        }
        for name, own in losses.items()
    }
    beaten = {
        name: {other: gain for other, gain in against.items() if gain.low is not None and gain.low > 0}
        for name, against in gains.items()
    }
    chosen = next((name for name, by in beaten.items() if not by), min(means, key=lambda name: means[name]))
    reasons = {name: _reason(name, chosen, beaten[name], gains, level) for name in losses}
    candidates = tuple(Candidate(name, means[name], beaten[name], reasons[name]) for name in losses)
    return Selection(chosen, level, candidates)


def _reason(
    name: str,
    chosen: str,
    beaten_by: Mapping[str, Interval],
    gains: Mapping[str, Mapping[str, Interval]],
    level: float,
) -> str:
    percent = f"{100 * level:g} %"
    if name == chosen:
        if beaten_by:
            return "each is beaten by another; this has the least mean loss"
        return f"the simplest that none beats at {percent}"
    if beaten_by:
        best = max(beaten_by, key=lambda other: np.float64(beaten_by[other].value))
        return f"beaten by {best}: {_told(beaten_by[best])} less loss at {percent}"
    return f"not simpler than {chosen}, and gains {_told(gains[chosen][name])} at {percent}: not surely any"


def _told(gain: Interval) -> str:
    return f"{gain.value:.3g} ({gain.low:.3g} to {gain.high:.3g})"
