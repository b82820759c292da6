"""Quantiles that hold out of fold: each is moved by what it missed on patients that its model did not see.

A head that is fitted behind an encoder judges its own errors by folds that the encoder has learned from: they
come out too small, and so does the distance of its quantiles. Of answers out of fold, made by the whole
recipe anew, the tau-quantile of y - q_tau says how far q_tau must be moved for a share tau of the truths to
lie below it. (For the outer levels that is asymmetric conformalised quantile regression, Romano, Patterson &
Candès, 2019, eq. 8, without its finite-sample term.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float64

from models.learning.folds import patient_numbers
from models.learning.task import QUANTILE_LEVELS
from models.types import Array, Int64


@dataclass(frozen=True)
class QuantileShift:
    """How far each of `QUANTILE_LEVELS` is moved, in the target's unit."""

    shifts: tuple[float, ...]

    @classmethod
    def of(
        cls, outputs: Float64[Array, "n 3"], targets: Float64[Array, " n"], patients: Sequence[str]
    ) -> Self:
        """From answers out of fold; rows of one patient share the weight of one."""
        numbers = patient_numbers(patients)
        weights = 1 / np.bincount(numbers)[numbers]
        misses = targets[:, None] - outputs
        return cls(
            tuple(
                _quantile(missed, weights, level)
                for missed, level in zip(misses.T, QUANTILE_LEVELS, strict=True)
            )
        )

    def __call__(self, outputs: Float64[Array, "n 3"]) -> Float64[Array, "n 3"]:
        """The quantiles, moved, and in order: an outer one that would pass the median stops there."""
        low, middle, high = (outputs + np.array(self.shifts)).T
        return np.stack([np.minimum(low, middle), middle, np.maximum(high, middle)], axis=1)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"levels": list(QUANTILE_LEVELS), "shifts": list(self.shifts)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(tuple(float(shift) for shift in data["shifts"]))


def cross_fitted(
    outputs: Float64[Array, "n 3"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    folds: Int64,
) -> Float64[Array, "n 3"]:
    """Answers out of fold, each moved by what those of the other folds missed: still out of fold."""
    moved, names = np.empty_like(outputs), np.array(patients)
    for fold in np.unique(folds):
        others = folds != fold
        shift = QuantileShift.of(outputs[others], targets[others], names[others].tolist())
        moved[~others] = shift(outputs[~others])
    return moved


def _quantile(values: Float64[Array, " n"], weights: Float64[Array, " n"], level: float) -> float:
    """The weighted quantile, between neighbours by linear interpolation at the middle of their weights."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(level, below / weights.sum(), values[order]))
