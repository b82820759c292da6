"""How good answers are, and by how much one regressor is ahead of another, with intervals.

Intervals are of a bootstrap on two levels: each draw takes as many seeds of the training as there are, and as
many people, both with replacement (Field & Welsh 2007, for the people). They hold what other people would
change, and what other seeds would; with a single seed the latter is not known, and they are of people alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.learning.metrics import BOOTSTRAP_LEVEL, DRAWS, Metric, metrics_of, patient_draws, row_losses
from models.learning.task import Task
from models.types import Array

TASK = Task()
SEED = 0
"""Of the bootstrap."""
Answered = Mapping[str, Float64[Array, "seeds n"]]
"""Answers to the same rows, by the name of what gave them."""


def scores(
    outputs: Float64[Array, "seeds n"], targets: Float64[Array, " n"], patients: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Every metric: its mean over seeds, each seed's, the least of them, their spread, and the interval."""
    return {metric.name.lower(): _score(metric, outputs, targets, patients) for metric in metrics_of(TASK)}


def _score(
    metric: Metric,
    outputs: Float64[Array, "seeds n"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
) -> dict[str, Any]:
    weights = patient_draws(patients, len(targets), seed=SEED, draws=DRAWS)
    drawn = np.stack([metric.weighted(each[:, None], targets, weights) for each in outputs])
    whole = np.ones((1, len(targets)))
    values = [float(metric.weighted(each[:, None], targets, whole)[0]) for each in outputs]
    return {
        "value": float(np.mean(values)),
        "sd_of_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        **_ends((_seed_draws(len(values), 0) * drawn).sum(axis=0)),
        "seeds": values,
        "least": min(values),
    }


def ahead(
    own: Float64[Array, "seeds n"],
    others: Float64[Array, "others n"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
) -> dict[str, float]:
    """By how much the R2 of `own` is above that of `others`, with its interval: the same people in both.

    In shares of the variance of all targets, which a draw does not change: what is drawn is the mean
    difference of squared errors, as in `models.learning.metrics.paired_difference`.
    """
    weights = patient_draws(patients, len(targets), seed=SEED, draws=DRAWS)
    mine, theirs = (_shares(each, targets) for each in (own, others))
    by_seed = [np.asarray(losses @ weights.T / weights.sum(axis=1)) for losses in (mine, theirs)]
    drawn = [(_seed_draws(len(means), side) * means).sum(axis=0) for side, means in enumerate(by_seed)]
    return {"value": float(theirs.mean() - mine.mean()), **_ends(drawn[1] - drawn[0])}


def best(names: Sequence[str], answers: Answered, targets: Float64[Array, " n"]) -> str:
    """Which of those that answered has the least squared error: known only now that all have been tested."""
    known = [name for name in names if name in answers]
    return min(known, key=lambda name: float(_shares(answers[name], targets).mean()))


def _shares(outputs: Float64[Array, "seeds n"], targets: Float64[Array, " n"]) -> Float64[Array, "seeds n"]:
    """Squared errors over the variance of the targets: their mean is 1 - R2."""
    losses = np.stack([row_losses(each[:, None], targets, TASK) for each in outputs])
    return np.asarray(losses / targets.var())


def _seed_draws(seeds: int, side: int) -> Float64[Array, "seeds draws"]:
    """Which share each seed has of each draw."""
    drawn = np.random.default_rng([SEED, 1 + side, seeds]).multinomial(
        seeds, np.full(seeds, 1 / seeds), DRAWS
    )
    return np.asarray(drawn.T / seeds)


def _ends(drawn: Float64[Array, " draws"]) -> dict[str, float]:
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, ((1 - BOOTSTRAP_LEVEL) / 2, (1 + BOOTSTRAP_LEVEL) / 2)).tolist()
    return {"low": low, "high": high}
