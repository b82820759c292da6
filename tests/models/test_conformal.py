"""Coverage of conformal intervals on exchangeable patients, and their limits."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from models.errors import InvalidConfig, InvalidShape
from models.learning.conformal import (
    COVERAGES,
    Change,
    Conformal,
    cv_plus,
    guaranteed,
    misses,
    needed,
    threshold,
)
from models.learning.task import Task
from models.types import Array

MEAN, QUANTILES, CLASSES = Task("mean"), Task("quantiles"), Task("classes", ("a", "b", "c"))


def names(count: int) -> list[str]:
    return [f"p{k}" for k in range(count)]


def inside(intervals: Array, truth: Array) -> Array:
    return (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])


@pytest.mark.parametrize("level", COVERAGES)
@pytest.mark.parametrize("patients", [19, 20, 57])
def test_with_one_row_each_the_threshold_is_split_conformals(level: float, patients: int) -> None:
    scores = np.random.default_rng(patients).exponential(size=patients)
    rank = math.ceil(round((patients + 1) * level, 9))
    assert threshold(scores, names(patients), level) == np.sort(scores)[rank - 1]


@pytest.mark.parametrize(("level", "least"), [(0.75, 3), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_too_few_patients_make_it_infinite_and_the_needed_number_is_told(level: float, least: int) -> None:
    scores = np.arange(float(least))
    assert needed(level) == least
    assert threshold(scores, names(least), level) == least - 1
    assert threshold(scores[1:], names(least - 1), level) == math.inf
    assert threshold(np.arange(4.0 * least), names(least - 1) * 4 + ["p0"] * 4, level) == math.inf


@pytest.mark.parametrize("level", COVERAGES)
def test_split_intervals_cover_exactly_as_often_as_ranks_say(level: float) -> None:
    rng, patients, repeats = np.random.default_rng(0), 29, 3000
    covered = []
    for _ in range(repeats):
        truth, told = rng.standard_t(3, patients + 1), rng.normal(size=(patients + 1, 1))
        found = Conformal.of(told[1:], truth[1:], names(patients), MEAN)
        covered.append(bool(inside(found.intervals(told[:1], level), truth[:1])[0]))
    exact = math.ceil(round((patients + 1) * level, 9)) / (patients + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=3.5 * math.sqrt(exact * (1 - exact) / repeats))


def test_conformalised_quantiles_cover_and_follow_the_spread() -> None:
    rng, covered, widths = np.random.default_rng(1), [], []
    for _ in range(300):
        spread = rng.uniform(0.2, 3, 80)
        truth = spread * rng.normal(size=80)
        told = spread[:, None] * (-0.3, 0.0, 0.3)  # much too narrow
        found = Conformal.of(told[:60], truth[:60], names(60), QUANTILES).intervals(told[60:], 0.8)
        covered.append(inside(found, truth[60:]).mean())
        widths.append(np.corrcoef(found[:, 1] - found[:, 0], spread[60:])[0, 1])
    assert np.mean(covered) == pytest.approx(0.8, abs=0.02)
    assert min(widths) > 0.99


def test_quantiles_that_are_too_wide_are_narrowed_but_keep_their_median() -> None:
    rng = np.random.default_rng(2)
    told, truth = np.tile((-10.0, 0.0, 10.0), (200, 1)), rng.normal(size=200)
    found = Conformal.of(told, truth, names(200), QUANTILES)
    assert found.thresholds[0] < 0
    low, high = found.intervals(told, 0.8)[0]
    assert high - low == pytest.approx(2 * 1.2816, rel=0.15)
    skewed = found.intervals(np.array([[-1.0, 0.0, 1.0]]), 0.8)
    assert skewed.tolist() == [[0, 0]]


@pytest.mark.parametrize("sharpness", [0.5, 5.0])
def test_sets_of_classes_cover_and_hold_the_most_probable(sharpness: float) -> None:
    rng, covered, sizes = np.random.default_rng(3), [], []
    for _ in range(400):
        scores = sharpness * rng.normal(size=(60, 3))
        told = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        truth = (rng.uniform(size=(60, 1)) > told.cumsum(axis=1)).sum(axis=1).astype(float)
        sets = Conformal.of(told[:40], truth[:40], names(40), CLASSES).sets(told[40:], 0.9)
        assert sets[np.arange(20), told[40:].argmax(axis=1)].all()
        covered.append(sets[np.arange(20), truth[40:].astype(int)].mean())
        sizes.append(sets.sum(axis=1).mean())
    assert np.mean(covered) > 0.89
    assert np.mean(covered) < 0.93 or sharpness > 1
    assert 1 <= np.mean(sizes) < (2.9 if sharpness < 1 else 1.5)
    few = Conformal.of(told[:8], truth[:8], names(8), CLASSES)
    assert few.sets(told, 0.9).all()


def test_patients_with_many_rows_do_not_outvote_the_others() -> None:
    """Half of the patients have 30 rows and small errors, half one row and large errors."""
    rng, ours, pooled = np.random.default_rng(4), [], []
    for _ in range(1500):
        many = rng.integers(0, 2, 31).astype(bool)
        rows = np.where(many, 30, 1)
        patients = np.repeat(np.arange(31), rows)
        errors = rng.normal(size=31)[patients] * np.where(many, 0.1, 1.0)[patients]
        scores = np.abs(errors + 0.02 * rng.normal(size=len(errors)))
        new = patients == 30
        seen = [str(p) for p in patients[~new]]
        ours.append((scores[new] <= threshold(scores[~new], seen, 0.9)).mean())
        pooled.append((scores[new] <= threshold(scores[~new], names(int((~new).sum())), 0.9)).mean())
    assert np.mean(ours) == pytest.approx(0.9, abs=0.025)
    assert np.mean(pooled) < 0.75


def test_rows_that_repeat_change_nothing_and_higher_levels_hold_lower_ones() -> None:
    rng = np.random.default_rng(5)
    told, truth = rng.normal(size=(25, 1)), rng.normal(size=25)
    once = Conformal.of(told, truth, names(25), MEAN)
    thrice = Conformal.of(
        np.repeat(told, 3, 0), np.repeat(truth, 3), sorted(names(25) * 3, key=names(25).index), MEAN
    )
    assert once.thresholds == thrice.thresholds
    bands = [once.intervals(told, level) for level in COVERAGES]
    for narrow, wide in pairwise(bands):
        assert (wide[:, 0] <= narrow[:, 0]).all()
        assert (wide[:, 1] >= narrow[:, 1]).all()


def test_a_calibration_is_told_as_json_with_what_is_missing() -> None:
    rng = np.random.default_rng(6)
    told, truth = rng.normal(size=(12, 1)), rng.normal(size=12)
    found = Conformal.of(told, truth, names(12), MEAN, method="out-of-fold")
    told_json = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Conformal.from_json(told_json) == found
    assert [level["threshold"] is None for level in told_json["levels"]] == [False, False, True]
    assert told_json["levels"][2]["needed"] == 19
    assert "no guarantee" in told_json["guarantee"]
    assert np.isinf(found.intervals(told, 0.95)).all()


def answers_of(task: Task, rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
    """Answers of a model and truths."""
    if task is CLASSES:
        return rng.dirichlet((1.0, 1.0, 1.0), rows), rng.integers(0, 3, rows).astype(float)
    return np.sort(rng.normal(size=(rows, task.outputs)), axis=1), rng.normal(size=rows)


@pytest.mark.parametrize("task", [MEAN, QUANTILES, CLASSES], ids=lambda task: task.kind)
def test_what_the_calibrated_model_held_another_holds_when_widened_by_the_change(task: Task) -> None:
    rng = np.random.default_rng(10)
    told, truth = answers_of(task, rng, 400)
    found = Conformal.of(told, truth, names(400), task)
    others = answers_of(task, rng, 400)[0]
    other = told + 0.2 * (others - told)
    change = Change(float(np.abs(other - told).max()), 400, apart=True)
    widened = found.widened(change)
    assert (misses(other, truth, task) <= misses(told, truth, task) + change.largest + 1e-12).all()
    assert (misses(other, truth, task) > misses(told, truth, task)).any()
    for level, q in zip(COVERAGES, found.thresholds, strict=True):
        held = misses(told, truth, task) <= q
        assert held.mean() >= level
        if task is CLASSES:
            assert widened.sets(other, level)[np.arange(400), truth.astype(int)][held].all()
        else:
            assert inside(widened.intervals(other, level), truth)[held].all()


@pytest.mark.parametrize("patients", [1, 4, 30])
def test_a_new_patients_change_is_the_largest_of_all_no_oftener_than_the_allowance(patients: int) -> None:
    """Whoever of K + 1 patients is the new one, in turn: that is what exchangeable means."""
    changes = np.random.default_rng(patients).pareto(1.0, patients + 1)
    changes[0] = changes[-1]
    larger = [changes[new] > np.delete(changes, new).max() for new in range(patients + 1)]
    assert np.mean(larger) <= Change(1.0, patients, apart=True).allowance
    distinct = np.arange(patients + 1.0)
    larger = [distinct[new] > np.delete(distinct, new).max() for new in range(patients + 1)]
    assert np.mean(larger) == Change(1.0, patients, apart=True).allowance


def test_widened_thresholds_are_told_and_read_again() -> None:
    found = Conformal(MEAN, "split", 19, (0.8, 0.95), (1.0, math.inf))
    assert "changes" not in found.to_json()
    twice = found.widened(Change(0.5, 9, apart=True)).widened(Change(0.25, 4, apart=False))
    assert twice.thresholds == (1.75, math.inf)
    told = json.loads(json.dumps(twice.to_json(), allow_nan=False))
    assert Conformal.from_json(told) == twice
    assert Conformal.from_json(found.to_json()) == found
    first, second, third = told["guarantee"].split("; ")
    assert first == found.guarantee
    assert second.endswith("on 9 patients: at most 0.1 less")
    assert third.endswith("on 4 patients who had a part in making it: about 0.2 less")
    for change in (Change(math.inf, 9, apart=True), Change(-1.0, 9, apart=True), Change(0.1, 0, apart=True)):
        with pytest.raises(InvalidConfig, match="change"):
            found.widened(change)


@pytest.mark.parametrize("folds", [4, 20])
def test_cv_plus_covers_about_its_level_from_twenty_patients(folds: int) -> None:
    """The model is least squares on 3 features of 20 patients: its errors in training are much too small."""
    rng, covered, naive = np.random.default_rng(7), [], []
    fold_of = np.arange(20) % folds
    for _ in range(250):
        X, noise = rng.normal(size=(40, 8)), rng.normal(size=40)
        y = X.sum(axis=1) + noise
        models = [
            np.linalg.lstsq(X[:20][fold_of != k], y[:20][fold_of != k], rcond=None)[0] for k in range(folds)
        ]
        told = np.stack([X[20:] @ w for w in models])[:, :, None]
        own = np.array([X[i] @ models[fold_of[i]] for i in range(20)])[:, None]
        band = cv_plus(told, own, y[:20], fold_of, names(20), MEAN, 0.8)
        covered.append(inside(band, y[20:]).mean())
        whole = np.linalg.lstsq(X[:20], y[:20], rcond=None)[0]
        training = threshold(np.abs(y[:20] - X[:20] @ whole), names(20), 0.8)
        naive.append((np.abs(y[20:] - X[20:] @ whole) <= training).mean())
    assert np.mean(naive) < 0.6
    assert 0.77 < np.mean(covered) < 0.93


def test_cv_plus_of_models_that_agree_is_the_interval_about_their_answer() -> None:
    rng = np.random.default_rng(8)
    outputs, targets = np.zeros((30, 1)), rng.normal(size=30)
    band = cv_plus(np.full((5, 2, 1), 7.0), outputs, targets, np.arange(30) % 5, names(30), MEAN, 0.9)
    Q = threshold(np.abs(targets), names(30), 0.9)
    assert band == pytest.approx(np.array([[7 - Q, 7 + Q]] * 2))
    quantiles = np.tile((-1.0, 0.0, 1.0), (30, 1))
    band = cv_plus(quantiles[None, :1], quantiles, targets, np.zeros(30, int), names(30), QUANTILES, 0.9)
    assert band == pytest.approx(
        Conformal.of(quantiles, targets, names(30), QUANTILES).intervals(quantiles[:1], 0.9)
    )
    few = cv_plus(np.zeros((2, 3, 1)), outputs[:8], targets[:8], np.arange(8) % 2, names(8), MEAN, 0.9)
    assert few.tolist() == [[-math.inf, math.inf]] * 3


def test_what_cv_plus_guarantees_is_less_than_its_level() -> None:
    assert guaranteed(0.9, 20, 20) == pytest.approx(0.8)
    assert guaranteed(0.9, 100, 5) == pytest.approx(0.8 - min(2 * 0.8 / 21, 0.95 / 6))
    assert guaranteed(0.5, 20, 20) == 0


def test_what_cannot_be_calibrated_is_refused() -> None:
    told, truth = np.zeros((5, 1)), np.zeros(5)
    with pytest.raises(InvalidConfig, match="method = 'magic'"):
        Conformal.of(told, truth, names(5), MEAN, method="magic")
    with pytest.raises(InvalidConfig, match=r"level = 1\.0"):
        Conformal.of(told, truth, names(5), MEAN, levels=(1.0,))
    with pytest.raises(InvalidShape, match="4 patients for 5 rows"):
        Conformal.of(told, truth, names(4), MEAN)
    with pytest.raises(InvalidShape, match="5 answers for 4 rows"):
        misses(told, truth[:4], MEAN)
    found = Conformal.of(told, truth, names(5), MEAN)
    with pytest.raises(InvalidConfig, match=r"level = 0\.7: must be one of 0\.8, 0\.9, 0\.95"):
        found.intervals(told, 0.7)
    with pytest.raises(InvalidConfig, match="classes"):
        found.sets(told, 0.8)
    with pytest.raises(InvalidConfig, match="ask for sets"):
        Conformal.of(np.eye(3), np.arange(3.0), names(3), CLASSES).intervals(np.eye(3), 0.8)
    with pytest.raises(InvalidShape, match="2 models do not fit"):
        cv_plus(np.zeros((2, 1, 1)), told, truth, np.arange(5), names(5), MEAN, 0.8)
    with pytest.raises(InvalidConfig, match=r"CV\+ makes intervals"):
        cv_plus(np.zeros((1, 3, 3)), np.eye(3), np.arange(3.0), np.zeros(3, int), names(3), CLASSES, 0.8)
