"""Cross-validation by patient: what a recipe says of every row, made without that row's patient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64

from models.errors import InvalidShape, refuse_non_finite
from models.learning.cohort import Cohort, Inputs
from models.learning.folds import refuse_divided
from models.learning.metrics import Interval, Metric, interval, metrics_of, row_losses
from models.learning.quantile_shift import QuantileShift, cross_fitted
from models.learning.task import Task
from models.training import Watch
from models.types import Array, Int64


class Predictor(Protocol):
    """What was made of a cohort."""

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """The answers to all rows."""


class Recipe(Protocol):
    """What makes a predictor of a cohort."""

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> Predictor:
        """A predictor of all rows."""


@dataclass(frozen=True)
class Score:
    """A metric of all rows together, with its interval by patients, and of each fold by itself.

    None stands where a metric has no value, as R2 of a fold whose targets are equal.
    """

    name: str
    higher_is_better: bool
    pooled: Interval
    folds: tuple[float | None, ...]

    @property
    def spread(self) -> float | None:
        """The standard deviation over folds that have a value; None for fewer than two."""
        values = [value for value in self.folds if value is not None]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            "pooled": self.pooled.to_json(),
            "folds": list(self.folds),
            "spread": self.spread,
        }


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Answers (n, outputs) out of fold, losses (n,) as `row_losses` has them, scores, and seconds by fold.

    Quantiles are moved by what other folds' missed; `shift` is what those of a model of all rows should be
    moved by. None for other tasks.
    """

    outputs: Float64[Array, "n o"]
    losses: Float64[Array, " n"]
    folds: Int64
    scores: tuple[Score, ...]
    seconds: tuple[float, ...]
    shift: QuantileShift | None = None

    def to_json(self) -> dict[str, Any]:
        """What is not a row of its own, as plain JSON."""
        return {"scores": [score.to_json() for score in self.scores], "seconds": list(self.seconds)}


def cross_validate(
    recipe: Recipe,
    cohort: Cohort,
    task: Task,
    folds: Int64,
    *,
    seed: int,
    device: torch.device,
    watch: Watch,
    metrics: Sequence[Metric] | None = None,
) -> CrossValidation:
    """A predictor for each fold, made from all others and asked about its rows.

    `folds` (n,) are each row's, 0 to K - 1, as `patient_folds` gives them. Fold k is watched as `fold-k`, and
    has a seed of its own. `metrics` are those of the task, if not given. Raises InvalidShape for a patient in
    two folds and for fewer than two folds, NonFinite for an answer, and what the recipe raises.
    """
    refuse_divided(cohort.row_patients, folds.tolist())
    if len(count := np.unique(folds)) < 2:
        raise InvalidShape(f"{len(count)} folds: cross-validation needs 2")
    outputs, seconds = np.empty((len(cohort), task.outputs)), []
    for fold in count.tolist():
        began = time.perf_counter()
        inside, others = (np.unique(cohort.inputs.scan_of[rows]) for rows in (folds == fold, folds != fold))
        model = recipe.fit(
            cohort.only(others),
            task,
            seed=_fold_seed(seed, fold),
            device=device,
            watch=watch.part(f"fold-{fold}"),
        )
        told = model.predict(cohort.inputs.only(inside))
        if told.shape != (expected := (int((folds == fold).sum()), task.outputs)):
            raise InvalidShape(f"the answers of fold {fold} are {told.shape}, not {expected}")
        refuse_non_finite(torch.from_numpy(told), f"answers of fold {fold}")
        outputs[folds == fold] = told
        seconds.append(time.perf_counter() - began)
    shift = None
    if task.kind == "quantiles":
        shift = QuantileShift.of(outputs, cohort.targets, cohort.row_patients)
        outputs = cross_fitted(outputs, cohort.targets, cohort.row_patients, folds)
    scores = tuple(
        scored(metric, outputs, cohort, folds, seed=seed) for metric in metrics or metrics_of(task)
    )
    losses = row_losses(outputs, cohort.targets, task)
    return CrossValidation(outputs, losses, folds, scores, tuple(seconds), shift)


def scored(
    metric: Metric, outputs: Float64[Array, "n o"], cohort: Cohort, folds: Int64, *, seed: int
) -> Score:
    """A metric of answers out of fold."""
    each = [metric(outputs[folds == fold], cohort.targets[folds == fold]) for fold in np.unique(folds)]
    pooled = interval(metric, outputs, cohort.targets, cohort.row_patients, seed=seed)
    return Score(metric.name, metric.higher_is_better, pooled, tuple(each))


def _fold_seed(seed: int, fold: int) -> int:
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
