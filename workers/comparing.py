"""What two models say of the same rows, one made of the other: how far apart they are, and how good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from models.compression.reports import Change, agreement
from models.errors import refuse_non_finite
from models.learning.cohort import Cohort
from models.learning.metrics import Interval, Metric, metrics_of
from models.learning.task import Task
from models.types import Array, Int64, Report
from workers.judgement import difference, figure, indicators
from workers.models import TrainedModel

JUDGING = "judging"
"""What a `Report` is told while both models are asked."""


@dataclass(frozen=True)
class Compared:
    """A metric of both models with intervals by patient, and that of the second less the first, paired."""

    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True, eq=False)
class Pairs:
    """Answers of two models, (n, outputs) each, to the `rows` (n,) of a table that judge them."""

    task: Task
    rows: Int64
    before: Float64[Array, "n o"]
    after: Float64[Array, "n o"]
    targets: Float64[Array, " n"]
    patients: tuple[str, ...]

    @property
    def largest_change(self) -> float:
        """Of any number of any answer."""
        return float(np.abs(self.after - self.before).max())

    @property
    def indicator(self) -> str:
        """Which number of an answer models are compared by."""
        return {
            "mean": "mean",
            "quantiles": "median",
            "classes": "probability of the class that is most probable before",
        }[self.task.kind]

    @property
    def indicators(self) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
        """One number for each answer; see `judgement.indicators`."""
        return indicators(self.before, self.after, self.task)

    @property
    def agreement(self) -> Change:
        """Bland & Altman's limits of the indicators."""
        before, after = self.indicators
        return agreement(torch.from_numpy(before), torch.from_numpy(after))

    @property
    def other_classes(self) -> int | None:
        """Rows whose most probable class is another one; None for numbers."""
        if self.task.kind != "classes":
            return None
        return int((self.before.argmax(axis=1) != self.after.argmax(axis=1)).sum())

    def metrics(self, seed: int) -> Iterator[tuple[Metric, Compared]]:
        """All metrics of the task, the first being what regressors are compared by."""
        for metric in metrics_of(self.task):
            before, after = (
                figure(metric, outputs, self.targets, self.patients, seed)
                for outputs in (self.before, self.after)
            )
            less = difference(metric, (self.before, self.after), self.targets, self.patients, seed)
            yield metric, Compared(before, after, less)


def compared(
    before: TrainedModel, after: TrainedModel, cohort: Cohort, scans: Int64, report: Report
) -> Pairs:
    """Both models asked about all rows of some of a cohort's scans, each scan by itself.

    Raises NonFinite for an answer that is none.
    """
    inputs, rows = cohort.inputs, cohort.inputs.rows_of(scans)
    told = [np.empty((len(inputs), before.task.outputs)) for _ in range(2)]
    for done, scan in enumerate(scans.tolist()):
        report(JUDGING, done, len(scans))
        one = np.array([scan])
        for model, outputs in zip((before, after), told, strict=True):
            outputs[inputs.rows_of(one)] = model.answers(inputs.only(one))
    first, second = (outputs[rows] for outputs in told)
    refuse_non_finite(torch.from_numpy(first), "the answers of the model")
    refuse_non_finite(torch.from_numpy(second), "the answers of the compressed model")
    patients = cohort.row_patients
    return Pairs(
        before.task, rows, first, second, cohort.targets[rows], tuple(patients[row] for row in rows.tolist())
    )
