"""How good answers are: metrics, and their intervals by a bootstrap of patients.

Every metric takes weights of rows, and so many draws of a bootstrap are one call; they are drawn in portions,
so that memory does not grow with the table. A draw takes as many
patients as there are, with replacement, each with all rows (Field & Welsh, Bootstrapping clustered data,
2007); intervals are its percentiles. Rows of one patient are not independent: drawing rows instead would
make intervals too narrow.

`mlll` is the modified Laplace log-likelihood of the OSIC lung cohort: with quantiles in ml,

    sigma = max(q.8 - q.2, 70),  delta = min(|y - q.5|, 1000),  -sqrt(2) delta / sigma - log(sqrt(2) sigma),

the mean over rows; higher is better. A target in other units must be brought to ml first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidConfig, InvalidShape
from models.learning.folds import patient_numbers
from models.learning.task import QUANTILE_LEVELS, Task
from models.types import Array

BOOTSTRAP_LEVEL = 0.95
DRAWS = 2000
PORTION = 1 << 21
"""Weights, of rows in draws, that are held at once."""
WHOLE_DRAWS = 8
"""Draws go to portions by so many: then sums over rows have the same bits whatever a portion is."""
SIGMA_FLOOR_ML = 70.0
ERROR_CEILING_ML = 1000.0
SMALLEST_PROBABILITY = 1e-15
"""A class that was called impossible, and came: -log of this, and not infinity."""

Weighted = Callable[[Array, Array, Array], Array]
"""(outputs (n, o), targets (n,), weights (b, n)) to values (b,), NaN where there is none."""


@dataclass(frozen=True)
class Metric:
    """A figure of merit, and which way is better."""

    name: str
    higher_is_better: bool
    weighted: Weighted

    def __call__(self, outputs: Float64[Array, "n o"], targets: Float64[Array, " n"]) -> float | None:
        """Its value; None where it has none: R2 of targets that are equal, AUC of a single class."""
        value = float(self.weighted(outputs, targets, np.ones((1, len(targets))))[0])
        return value if np.isfinite(value) else None


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval at `level`. `draws` counts draws of patients that had a value.

    All three are None where the rows themselves have none; `low` and `high` where fewer than half of the
    draws have.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    draws: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """What is reported for a task, the first being what regressors are compared by. `MLLL` is asked for by
    itself: it has a unit.
    """
    if task.kind == "classes":
        return (LOG_LOSS, ACCURACY, AUC)
    return (PINBALL, RMSE, MAE, R2) if task.kind == "quantiles" else (RMSE, MAE, R2)


def row_losses(
    outputs: Float64[Array, "n o"], targets: Float64[Array, " n"], task: Task
) -> Float64[Array, " n"]:
    """What regressors are compared by, row by row, lower being better: squared errors, pinball losses,
    -log probabilities.
    """
    if task.kind == "classes":
        return _surprises(outputs, targets)
    if task.kind == "quantiles":
        return _pinballs(outputs, targets)
    return np.asarray(np.square(_errors(outputs, targets)))


def interval(
    metric: Metric,
    outputs: Float64[Array, "n o"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    *,
    seed: int,
    level: float = BOOTSTRAP_LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """The metric of some rows with its interval.

    Raises InvalidShape for fewer than two patients or other numbers of rows, InvalidConfig for level, draws.
    """
    portions = _portions(patients, len(targets), seed=seed, draws=draws)
    drawn = np.concatenate([metric.weighted(outputs, targets, weights) for weights in portions])
    return _interval(metric(outputs, targets), drawn[np.isfinite(drawn)], level, draws)


def paired_difference(
    losses: Float64[Array, "*seeds n"],
    others: Float64[Array, "*seeds n"],
    patients: Sequence[str],
    *,
    seed: int,
    level: float = BOOTSTRAP_LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """The mean of losses - others over the same rows, with its interval; below 0 the first are better.

    Losses of several seeds, (seeds, n), are averaged row by row first. Raises as `interval`.
    """
    difference = _over_seeds(losses) - _over_seeds(others)
    portions = _portions(patients, len(difference), seed=seed, draws=draws)
    drawn = np.concatenate([_mean(difference, weights) for weights in portions])
    return _interval(float(difference.mean()), drawn, level, draws)


def patient_draws(patients: Sequence[str], rows: int, *, seed: int, draws: int) -> Float64[Array, "b n"]:
    """How often each row is in each draw. Raises InvalidShape, InvalidConfig as `interval`."""
    return np.concatenate(list(_portions(patients, rows, seed=seed, draws=draws)))


def _portions(
    patients: Sequence[str], rows: int, *, seed: int, draws: int
) -> Iterator[Float64[Array, "b n"]]:
    """The draws, one portion after another."""
    numbers = patient_numbers(patients)
    count = len(np.unique(numbers))
    if len(numbers) != rows:
        raise InvalidShape(f"{len(numbers)} patients for {rows} rows")
    if count < 2:
        raise InvalidShape(f"{count} patients: a bootstrap needs 2")
    if draws < 1:
        raise InvalidConfig("draws", draws, "at least 1")
    generator, shares = np.random.default_rng([seed, count]), np.full(count, 1 / count)
    portion = max(1, PORTION // (rows * WHOLE_DRAWS)) * WHOLE_DRAWS
    for first in range(0, draws, portion):
        drawn = generator.multinomial(count, shares, size=min(portion, draws - first)).astype(np.float64)
        yield drawn[:, numbers]


def _interval(value: float | None, drawn: Float64[Array, " b"], level: float, draws: int) -> Interval:
    if not 0 < level < 1:
        raise InvalidConfig("level", level, "between 0 and 1")
    if value is None or 2 * len(drawn) < draws:
        return Interval(value, None, None, level, len(drawn))
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)).tolist()
    return Interval(value, low, high, level, len(drawn))


def _over_seeds(losses: Float64[Array, "*seeds n"]) -> Float64[Array, " n"]:
    return np.asarray(np.atleast_2d(losses).mean(axis=0))


def _mean(values: Float64[Array, " n"], weights: Float64[Array, "b n"]) -> Float64[Array, " b"]:
    return np.asarray(weights @ values / weights.sum(axis=1))


def _middle(outputs: Float64[Array, "n o"]) -> Float64[Array, " n"]:
    """The prediction: the mean, or the median."""
    return outputs[:, outputs.shape[1] // 2]


def _errors(outputs: Array, targets: Array) -> Float64[Array, " n"]:
    return np.asarray(targets - _middle(outputs))


def _pinballs(outputs: Array, targets: Array) -> Float64[Array, " n"]:
    missed = targets[:, None] - outputs
    levels = np.array(QUANTILE_LEVELS)
    return np.asarray(np.maximum(levels * missed, (levels - 1) * missed).mean(axis=1))


def _surprises(outputs: Array, targets: Array) -> Float64[Array, " n"]:
    came = outputs[np.arange(len(targets)), targets.astype(np.int64)]
    return np.asarray(-np.log(np.maximum(came, SMALLEST_PROBABILITY)))


def _rmse(outputs: Array, targets: Array, weights: Array) -> Array:
    return np.asarray(np.sqrt(_mean(np.square(_errors(outputs, targets)), weights)))


def _mae(outputs: Array, targets: Array, weights: Array) -> Array:
    return _mean(np.abs(_errors(outputs, targets)), weights)


def _r2(outputs: Array, targets: Array, weights: Array) -> Array:
    centred = targets - targets.mean()
    variance = _mean(np.square(centred), weights) - np.square(_mean(centred, weights))
    constant = variance <= 1e-14 * np.square(targets).mean()
    residual = _mean(np.square(_errors(outputs, targets)), weights)
    return np.where(constant, np.nan, 1 - residual / np.where(constant, 1, variance))


def _mlll(outputs: Array, targets: Array, weights: Array) -> Array:
    sigma = np.maximum(outputs[:, -1] - outputs[:, 0], SIGMA_FLOOR_ML)
    delta = np.minimum(np.abs(_errors(outputs, targets)), ERROR_CEILING_ML)
    return _mean(-np.sqrt(2) * delta / sigma - np.log(np.sqrt(2) * sigma), weights)


def _accuracy(outputs: Array, targets: Array, weights: Array) -> Array:
    return _mean((outputs.argmax(axis=1) == targets).astype(np.float64), weights)


def _auc(outputs: Array, targets: Array, weights: Array) -> Array:
    """Of two classes that of the second; of more the mean over each against the rest that have rows."""
    classes = [1] if outputs.shape[1] == 2 else np.unique(targets).astype(np.int64).tolist()
    return np.asarray(np.mean([_auc_of(outputs[:, k], targets == k, weights) for k in classes], axis=0))


def _auc_of(scores: Array, positive: Array, weights: Array) -> Array:
    """How probably a positive row scores above a negative one, ties counted half (Mann & Whitney, 1947).

    Positive rows win against all that they pass, less half of the pairs among themselves.
    """
    order, by_row = np.argsort(scores, kind="stable"), np.ascontiguousarray(weights.T)
    passed = np.zeros((len(scores) + 1, len(weights)))
    np.cumsum(by_row[order], axis=0, out=passed[1:])
    lower, not_higher = (np.searchsorted(scores[order], scores[positive], side) for side in ("left", "right"))
    own = by_row[positive]
    positives = own.sum(axis=0)
    pairs = positives * (passed[-1] - positives)
    won = (own * (passed[lower] + passed[not_higher])).sum(axis=0) / 2 - np.square(positives) / 2
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)


RMSE = Metric("rmse", False, _rmse)
MAE = Metric("mae", False, _mae)
R2 = Metric("r2", True, _r2)
PINBALL = Metric("pinball", False, lambda outputs, targets, w: _mean(_pinballs(outputs, targets), w))
MLLL = Metric("mlll", True, _mlll)
LOG_LOSS = Metric("log_loss", False, lambda outputs, targets, w: _mean(_surprises(outputs, targets), w))
ACCURACY = Metric("accuracy", True, _accuracy)
AUC = Metric("auc", True, _auc)
