"""Quantiles that were too narrow hold out of fold once they are moved."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.learning.quantile_shift import QuantileShift, cross_fitted
from models.learning.task import QUANTILE_LEVELS
from models.types import Array

PATIENTS = [f"p{k // 2}" for k in range(4000)]
FOLDS = np.arange(4000) // 2 % 5


def narrow(seed: int = 0) -> tuple[Array, Array]:
    """Truths with errors of deviation 1, and quantiles that are made for a tenth of that, 0.3 too high."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=4000)
    return middle[:, None] + 0.3 + [-0.08, 0.0, 0.08], middle + rng.normal(size=4000)


def below(outputs: Array, targets: Array) -> Array:
    return np.asarray((targets[:, None] <= outputs).mean(axis=0))


def test_a_share_of_each_level_lies_below() -> None:
    outputs, targets = narrow()
    assert np.abs(below(outputs, targets) - QUANTILE_LEVELS).max() > 0.2
    shift = QuantileShift.of(outputs, targets, PATIENTS)
    assert below(shift(outputs), targets) == pytest.approx(QUANTILE_LEVELS, abs=1e-3)
    fresh, truths = narrow(1)
    assert below(shift(fresh), truths) == pytest.approx(QUANTILE_LEVELS, abs=0.03)
    assert shift.shifts == pytest.approx((-0.3 - 0.76, -0.3, -0.3 + 0.76), abs=0.08)


def test_cross_fitted_answers_know_nothing_of_their_own_fold() -> None:
    outputs, targets = narrow()
    moved = cross_fitted(outputs, targets, PATIENTS, FOLDS)
    assert below(moved, targets) == pytest.approx(QUANTILE_LEVELS, abs=0.02)
    changed = targets.copy()
    changed[FOLDS == 3] += 100
    again = cross_fitted(outputs, changed, PATIENTS, FOLDS)
    assert np.array_equal(again[FOLDS == 3], moved[FOLDS == 3])
    assert not np.array_equal(again[FOLDS == 2], moved[FOLDS == 2])


def test_patients_count_and_not_their_rows() -> None:
    """Nine patients of one row miss by 1, one of 91 rows by 100."""
    misses = np.concatenate([np.ones(9), np.full(91, 100.0)])
    patients = [f"p{k}" for k in range(9)] + ["many"] * 91
    shift = QuantileShift.of(np.zeros((100, 3)), misses, patients)
    assert shift.shifts[:2] == (1.0, 1.0)


def test_the_median_is_never_passed() -> None:
    moved = QuantileShift((5.0, 0.0, -5.0))(np.array([[-1.0, 0.0, 1.0], [-9.0, 0.0, 9.0]]))
    assert moved.tolist() == [[0.0, 0.0, 0.0], [-4.0, 0.0, 4.0]]


def test_it_is_plain_json() -> None:
    shift = QuantileShift.of(*narrow(), PATIENTS)
    assert QuantileShift.from_json(json.loads(json.dumps(shift.to_json()))) == shift
