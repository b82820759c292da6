"""Intervals and sets with a coverage that needs no model of the errors: conformal prediction.

Scores say how badly an answer missed: |y - mean| (Lei et al., 2018); for quantiles max(q.2 - y, y - q.8),
conformalised quantile regression (Romano, Patterson & Candès, 2019); for classes 1 - p_y, least ambiguous
sets (Sadinle, Lei & Wasserman, 2019). With scores of patients that trained nothing, an answer widened to
their quantile Q covers a new patient's truth with probability `level` at least, whatever the model is.

Several rows of one patient are not exchangeable with those of others, and so patients count, not rows:
hierarchical conformal prediction (Lee, Barber & Willett, 2023; after Dunn, Wasserman & Ramdas, 2022). With K
patients of n_k rows each score has the weight 1 / ((K + 1) n_k), what is left, 1 / (K + 1), is at infinity,
and Q is the quantile of that distribution. The coverage is that of any row of a new patient; with one row
each this is split conformal prediction, the ceil((K + 1) level)-th smallest score.

Too few patients for a level, K < 1 / (1 - level) - 1, make Q infinite. That is no error: the lower levels
still hold, and a model is not withheld because its 95 % interval cannot be had yet. Such intervals are
-inf ... inf (sets hold all classes), in JSON the threshold is null, and `needed` says how many patients would
do.

Another model f' may take the place of the calibrated f, a compressed one say. A score moves by no more than
answers do: |y - f'| <= |y - f| + |f' - f|, and likewise for quantiles and classes. So what held with Q holds
with Q + D for a patient whose answers change by D at most. With D the largest change on K patients that are
exchangeable with the new one, and had no part in making f', the new one's is larger with probability
1 / (K + 1) at most, being then the largest of K + 1: the coverage is `level` - 1 / (K + 1) at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float64

from models.errors import InvalidConfig, InvalidShape
from models.learning.folds import patient_numbers
from models.learning.task import Task
from models.types import Array, Int64

COVERAGES = (0.8, 0.9, 0.95)
"""Shares of truths that intervals are to hold."""
ROUNDING = 1e-9
"""Of a count of patients: (K + 1) level is a whole number where it is one but for rounding."""

GUARANTEES = {
    "split": "covers a row of a new patient, like those of the calibration, with this probability at least",
    "out-of-fold": "covers about this often where leaving a fold out hardly changes the model; no guarantee",
}
"""What thresholds promise: from patients that trained nothing, or from the models of other folds."""


@dataclass(frozen=True)
class Change:
    """Of answers by another model in the place of the calibrated one: no number of them by more than
    `largest`, on so many `patients`. `apart`: these had no part in making either model.
    """

    largest: float
    patients: int
    apart: bool

    @property
    def allowance(self) -> float:
        """How probable a larger change of a new patient's answers is, at most, where they are `apart`."""
        return 1 / (self.patients + 1)

    def __str__(self) -> str:
        told = f"widened by {self.largest:.4g}, the largest change of an answer by compression on "
        if self.apart:
            return f"{told}{self.patients} patients: at most {self.allowance:.2g} less"
        return f"{told}{self.patients} patients who had a part in making it: about {self.allowance:.2g} less"


@dataclass(frozen=True)
class Conformal:
    """How far answers are widened for each level. Make one with `Conformal.of`.

    `thresholds` are infinite where the calibration had too few patients; they have the `changes` in them.
    """

    task: Task
    method: str
    patients: int
    levels: tuple[float, ...]
    thresholds: tuple[float, ...]
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in GUARANTEES:
            raise InvalidConfig("method", self.method, f"one of {', '.join(GUARANTEES)}")

    @classmethod
    def of(
        cls,
        outputs: Float64[Array, "n o"],
        targets: Float64[Array, " n"],
        patients: Sequence[str],
        task: Task,
        *,
        method: str = "split",
        levels: Sequence[float] = COVERAGES,
    ) -> Self:
        """From answers to rows of patients that the model was not made from.

        `method` is one of `GUARANTEES`: `split` where one model answered all rows, `out-of-fold` where each
        was answered by the model of the other folds. Raises InvalidConfig for another method or levels
        outside of (0, 1), InvalidShape for other numbers of rows.
        """
        scores = misses(outputs, targets, task)
        thresholds = tuple(threshold(scores, patients, level) for level in levels)
        return cls(task, method, len(set(patients)), tuple(levels), thresholds)

    def widened(self, change: Change) -> Self:
        """For answers of another model. See the module's text; raises InvalidConfig for no such change."""
        if not 0 <= change.largest < math.inf or change.patients < 1:
            raise InvalidConfig("change", change, "at least 0 and finite, on one patient or more")
        thresholds = tuple(threshold + change.largest for threshold in self.thresholds)
        return replace(self, thresholds=thresholds, changes=(*self.changes, change))

    @property
    def guarantee(self) -> str:
        """What the thresholds promise, in words."""
        return "; ".join([GUARANTEES[self.method], *map(str, self.changes)])

    def intervals(self, outputs: Float64[Array, "n o"], level: float) -> Float64[Array, "n 2"]:
        """Lowest and highest target for each row; infinite where patients were too few.

        The median, or mean, is always inside. Raises InvalidConfig for a level that was not calibrated, and
        for classes.
        """
        if self.task.kind == "classes":
            raise InvalidConfig("task", self.task.kind, "a number: for classes ask for sets")
        low, middle, high = _band(outputs)
        widening = self._threshold(level)
        return np.stack([np.minimum(low - widening, middle), np.maximum(high + widening, middle)], axis=1)

    def sets(self, outputs: Float64[Array, "n k"], level: float) -> Bool[Array, "n k"]:
        """Which classes each row may be of; the most probable always among them.

        Raises InvalidConfig for a level that was not calibrated, and for numbers.
        """
        if self.task.kind != "classes":
            raise InvalidConfig("task", self.task.kind, "classes: for numbers ask for intervals")
        best = np.eye(outputs.shape[1], dtype=bool)[outputs.argmax(axis=1)]
        return np.asarray((1 - outputs <= self._threshold(level)) | best)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON: for each level the threshold, or null, and how many patients it needs."""
        changes = {"changes": [asdict(change) for change in self.changes]} if self.changes else {}
        return {
            "task": {"kind": self.task.kind, "classes": list(self.task.classes)},
            "method": self.method,
            "guarantee": self.guarantee,
            "patients": self.patients,
            "levels": [
                {"level": level, "threshold": q if math.isfinite(q) else None, "needed": needed(level)}
                for level, q in zip(self.levels, self.thresholds, strict=True)
            ],
            **changes,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        thresholds = (level["threshold"] for level in data["levels"])
        return cls(
            Task(data["task"]["kind"], tuple(data["task"]["classes"])),
            data["method"],
            data["patients"],
            tuple(level["level"] for level in data["levels"]),
            tuple(math.inf if q is None else q for q in thresholds),
            tuple(Change(**change) for change in data.get("changes", ())),
        )

    def _threshold(self, level: float) -> float:
        if level not in self.levels:
            raise InvalidConfig("level", level, f"one of {', '.join(map(str, self.levels))}")
        return self.thresholds[self.levels.index(level)]


def misses(outputs: Float64[Array, "n o"], targets: Float64[Array, " n"], task: Task) -> Float64[Array, " n"]:
    """The scores: how badly answers missed. See the module's text."""
    if len(outputs) != len(targets):
        raise InvalidShape(f"{len(outputs)} answers for {len(targets)} rows")
    if task.kind == "classes":
        return np.asarray(1 - outputs[np.arange(len(targets)), targets.astype(np.int64)])
    low, _, high = _band(outputs)
    return np.asarray(np.maximum(low - targets, targets - high))


def threshold(scores: Float64[Array, " n"], patients: Sequence[str], level: float) -> float:
    """Q: what a new patient's score stays below with probability `level` at least; may be infinite."""
    if not 0 < level < 1:
        raise InvalidConfig("level", level, "between 0 and 1")
    return float(_quantiles(scores[None], _weights(patients, len(scores)), level)[0])


def needed(level: float) -> int:
    """The fewest patients for a finite interval at this level."""
    return math.ceil(level / (1 - level) - ROUNDING)


def cv_plus(
    told: Float64[Array, "k m o"],
    outputs: Float64[Array, "n o"],
    targets: Float64[Array, " n"],
    folds: Int64,
    patients: Sequence[str],
    task: Task,
    level: float,
) -> Float64[Array, "m 2"]:
    """CV+ intervals of new rows, from cross-validation alone; jackknife+ where each patient is a fold.

    For cohorts too small to lay patients aside (Barber, Candès, Ramdas & Tibshirani, Predictive inference
    with the jackknife+, 2021). `told[k]` is what the model made without fold k says of the m new rows,
    `outputs` (n, o) what it said of its own fold's rows, `folds` (n,) which that was. With the scores R_i,
    ends are quantiles over i of low_k(i)(x) - R_i and of high_k(i)(x) + R_i, weighted as ever.

    They cover `guaranteed(level, patients, folds)` at least, which is much less than `level`; in practice
    about `level`. Infinite where patients are too few. Raises InvalidConfig for classes and levels,
    InvalidShape for folds that have no model.
    """
    if task.kind == "classes":
        raise InvalidConfig("task", task.kind, "a number: CV+ makes intervals")
    if not 0 < level < 1:
        raise InvalidConfig("level", level, "between 0 and 1")
    if len(folds) != len(targets) or folds.min() < 0 or folds.max() >= len(told):
        raise InvalidShape(f"folds {folds.shape} of {len(targets)} rows and {len(told)} models do not fit")
    scores, weights = misses(outputs, targets, task), _weights(patients, len(targets))
    low, _, high = _band(told.reshape(-1, told.shape[-1]))
    ends = (end.reshape(told.shape[:2])[folds].T for end in (-low, high))
    below, above = (_quantiles(end + scores, weights, level) for end in ends)
    return np.sort(np.stack([-below, above], axis=1), axis=1)


def guaranteed(level: float, patients: int, folds: int) -> float:
    """The coverage that CV+ cannot fall below: 1 - 2 (1 - level), and a little less between the extremes.

    Barber et al. (2021), Theorems 1 and 4, with patients as the units and folds of about one size.
    """
    n, K = patients, folds
    excess = min(2 * (1 - 1 / K) / (n / K + 1), (1 - K / n) / (K + 1))
    return max(0.0, 1 - 2 * (1 - level) - excess)


def _band(outputs: Float64[Array, "n o"]) -> tuple[Array, Array, Array]:
    """The lowest, middle and highest number of each answer; one and the same for means."""
    return outputs[:, 0], outputs[:, outputs.shape[1] // 2], outputs[:, -1]


def _weights(patients: Sequence[str], rows: int) -> Float64[Array, " n"]:
    """1 / (rows of the patient); they add up to the number of patients."""
    if len(patients) != rows:
        raise InvalidShape(f"{len(patients)} patients for {rows} rows")
    numbers = patient_numbers(patients)
    return np.asarray(1 / np.bincount(numbers)[numbers])


def _quantiles(
    values: Float64[Array, "m n"], weights: Float64[Array, " n"], level: float
) -> Float64[Array, " m"]:
    """For each row of values the smallest one that has `level` of all weight, 1 of it at infinity, below or
    at it.
    """
    values = np.pad(values, ((0, 0), (0, 1)), constant_values=np.inf)
    weights = np.append(weights, 1.0)
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1) >= level * weights.sum() - ROUNDING
    first = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    return np.asarray(np.take_along_axis(values, first, axis=1)[:, 0])
