"""Answers beside the truth: metrics, how often intervals hold it, and how answers and truths go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from models.learning.conformal import COVERAGES, Conformal
from models.learning.metrics import BOOTSTRAP_LEVEL, Interval, Metric, interval
from models.learning.task import QUANTILE_LEVELS, Task
from models.types import Array, Int64

BINS = 5
"""Rows of a calibration table, of about as many answers each."""


@dataclass(frozen=True)
class Bin:
    """Answers that are alike, and the truths beside them: how many, and both means."""

    of: str
    rows: int
    told: float
    true: float


def figure(
    metric: Metric,
    outputs: Float64[Array, "n o"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    seed: int,
) -> Interval:
    """A metric with its interval by patients; without one where there are fewer than two."""
    if len(set(patients)) < 2:
        return Interval(metric(outputs, targets), None, None, BOOTSTRAP_LEVEL, 0)
    return interval(metric, outputs, targets, patients, seed=seed)


def difference(
    metric: Metric,
    outputs: tuple[Float64[Array, "n o"], Float64[Array, "n o"]],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    seed: int,
) -> Interval:
    """A metric of the second outputs less that of the first, on the same draws of patients: paired."""
    width = outputs[0].shape[1]
    less = Metric(
        metric.name,
        metric.higher_is_better,
        lambda both, truths, w: (
            metric.weighted(both[:, width:], truths, w) - metric.weighted(both[:, :width], truths, w)
        ),
    )
    return figure(less, np.hstack(outputs), targets, patients, seed)


def indicators(
    before: Float64[Array, "n o"], after: Float64[Array, "n o"], task: Task
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """The one number of each answer that two models are compared by: the mean, the median, or the probability
    of the class that the first holds most probable.
    """
    if task.kind != "classes":
        return before[:, before.shape[1] // 2], after[:, after.shape[1] // 2]
    best = before.argmax(axis=1)[:, None]
    first, second = (np.take_along_axis(each, best, axis=1)[:, 0] for each in (before, after))
    return first, second


def coverage(
    conformal: Conformal,
    outputs: Float64[Array, "n o"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    seed: int,
) -> Iterator[tuple[float, Interval]]:
    """For each level the share of truths in the model's interval, or set, with its own interval."""
    for level in COVERAGES:
        held = _held(conformal, outputs, targets, level).astype(np.float64)
        share = Metric(
            "coverage",
            True,
            lambda outputs, targets, w, held=held: (w @ held) / w.sum(axis=1),  # type: ignore[misc]
        )
        yield level, figure(share, outputs, targets, patients, seed)


def calibration(outputs: Float64[Array, "n o"], targets: Float64[Array, " n"], task: Task) -> list[Bin]:
    """For a mean, means of answers and truths where answers are alike; for quantiles, how many truths are
    below; for classes, probabilities and how often the class was true.
    """
    if task.kind == "mean":
        return [_bin("answers", outputs[:, 0], targets, rows) for rows in _alike(outputs[:, 0])]
    if task.kind == "quantiles":
        below = (targets[:, None] <= outputs).mean(axis=0).tolist()
        return [
            Bin(f"quantile {level:g}", len(targets), level, share)
            for level, share in zip(QUANTILE_LEVELS, below, strict=True)
        ]
    return [
        _bin(name, outputs[:, number], (targets == number).astype(np.float64), rows)
        for number, name in enumerate(task.classes)
        for rows in _alike(outputs[:, number])
    ]


def _held(
    conformal: Conformal, outputs: Float64[Array, "n o"], targets: Float64[Array, " n"], level: float
) -> Bool[Array, " n"]:
    if conformal.task.kind == "classes":
        return conformal.sets(outputs, level)[np.arange(len(targets)), targets.astype(np.int64)]
    low, high = conformal.intervals(outputs, level).T
    return np.asarray((low <= targets) & (targets <= high))


def _alike(answers: Float64[Array, " n"]) -> list[Int64]:
    """Rows in order of their answers, in `BINS` parts; equal answers may be parted."""
    order = np.argsort(answers, kind="stable")
    return [part for part in np.array_split(order, BINS) if len(part)]


def _bin(of: str, answers: Float64[Array, " n"], truths: Float64[Array, " n"], rows: Int64) -> Bin:
    return Bin(of, len(rows), float(answers[rows].mean()), float(truths[rows].mean()))
