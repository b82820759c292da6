"""Losses and metrics by hand, and intervals by patient."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from models.errors import InvalidConfig, InvalidShape
from models.learning import metrics as m
from models.learning.losses import answers, losses, pinball
from models.learning.task import QUANTILE_LEVELS, Task
from models.types import Array

MEAN, QUANTILES, CLASSES = Task("mean"), Task("quantiles"), Task("classes", ("a", "b", "c"))


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def weighted(metric: m.Metric, outputs: Array, targets: Array, weights: Array) -> float:
    return float(metric.weighted(outputs, targets, np.asarray(weights, float)[None])[0])


def test_errors_by_hand() -> None:
    outputs, targets = np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 4.0, 5.0])
    assert m.RMSE(outputs, targets) == pytest.approx(math.sqrt(5 / 3))
    assert m.MAE(outputs, targets) == pytest.approx(1)
    assert m.R2(outputs, targets) == pytest.approx(1 - 5 / (78 / 9))
    assert m.R2(np.full((3, 1), targets.mean()), targets) == pytest.approx(0)
    assert m.R2(outputs, np.full(3, 2.0)) is None
    assert m.R2.higher_is_better
    assert not m.RMSE.higher_is_better


def test_mlll_is_osics_with_both_clips() -> None:
    def mlll(low: float, middle: float, high: float, truth: float) -> float | None:
        return m.MLLL(np.array([[low, middle, high]]), np.array([truth]))

    assert mlll(2000, 2100, 2200, 2400) == pytest.approx(
        -math.sqrt(2) * 300 / 200 - math.log(math.sqrt(2) * 200)
    )
    assert mlll(2090, 2100, 2110, 2100) == pytest.approx(-math.log(math.sqrt(2) * 70))  # about -4.595
    assert mlll(2090, 2100, 2110, 2100) == pytest.approx(-4.5950692687)
    assert mlll(2000, 2100, 2200, 9000) == pytest.approx(
        -math.sqrt(2) * 1000 / 200 - math.log(math.sqrt(2) * 200)
    )
    assert m.MLLL.higher_is_better
    exact, off = mlll(2000, 2100, 2200, 2100), mlll(2000, 2100, 2200, 2300)
    assert exact is not None
    assert off is not None
    assert exact > off


def test_class_metrics_by_hand() -> None:
    outputs = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.0, 0.6, 0.4], [1.0, 0.0, 0.0]])
    targets = np.array([0.0, 1.0, 2.0, 1.0])
    impossible = -math.log(m.SMALLEST_PROBABILITY)
    expected = (-math.log(0.7) - math.log(0.5) - math.log(0.4) + impossible) / 4
    assert m.LOG_LOSS(outputs, targets) == pytest.approx(expected)
    assert m.ACCURACY(outputs, targets) == 0.5


def test_auc_counts_pairs_and_half_of_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40) / 6, rng.integers(0, 2, 40).astype(float)
    outputs = np.stack([1 - scores, scores], axis=1)
    pairs = [(s > t) + (s == t) / 2 for s in scores[positive == 1] for t in scores[positive == 0]]
    assert m.AUC(outputs, positive) == pytest.approx(np.mean(pairs))
    assert m.AUC(outputs[:, ::-1], positive) == pytest.approx(1 - np.mean(pairs))
    assert m.AUC(outputs, np.ones(40)) is None
    three = np.eye(3)[[0, 1, 2, 0, 1]]
    assert m.AUC(three, np.array([0.0, 1, 2, 0, 1])) == 1
    assert m.AUC(np.full((5, 3), 1 / 3), np.array([0.0, 1, 2, 0, 1])) == 0.5


@pytest.mark.parametrize(
    "metric", [m.RMSE, m.MAE, m.R2, m.PINBALL, m.MLLL, m.LOG_LOSS, m.ACCURACY, m.AUC], ids=lambda x: x.name
)
def test_weights_are_repetitions(metric: m.Metric) -> None:
    rng = np.random.default_rng(1)
    classes = metric in (m.LOG_LOSS, m.ACCURACY, m.AUC)
    outputs = rng.dirichlet(np.ones(3), 20) if classes else np.sort(300 * rng.normal(size=(20, 3)), axis=1)
    targets = np.arange(20.0) % 3 if classes else 300 * rng.normal(size=20)
    weights = rng.integers(1, 4, 20)
    repeated = np.repeat(np.arange(20), weights)
    expected = metric(outputs[repeated], targets[repeated])
    assert weighted(metric, outputs, targets, weights) == pytest.approx(expected, rel=1e-12)


def test_row_losses_average_to_what_regressors_are_compared_by() -> None:
    quantiles, targets = np.sort(drawn(9, 3), axis=1), drawn(9, seed=1)
    assert m.row_losses(quantiles, targets, QUANTILES).mean() == pytest.approx(m.PINBALL(quantiles, targets))
    squares = m.row_losses(quantiles[:, :1], targets, MEAN)
    assert math.sqrt(squares.mean()) == pytest.approx(m.RMSE(quantiles[:, :1], targets))
    told, classes = np.random.default_rng(0).dirichlet(np.ones(3), 9), np.arange(9.0) % 3
    assert m.row_losses(told, classes, CLASSES).mean() == pytest.approx(m.LOG_LOSS(told, classes))
    for task, outputs, truth in ((QUANTILES, quantiles, targets), (CLASSES, told, classes)):
        raw = torch.from_numpy(np.log(outputs) if task is CLASSES else outputs)
        expected = losses(raw, torch.from_numpy(truth), task)
        assert np.allclose(m.row_losses(outputs, truth, task), expected.numpy())
        assert np.allclose(answers(raw, task).numpy(), outputs)
        assert m.metrics_of(task)[0](outputs, truth) == pytest.approx(float(expected.mean()))


def test_the_pinball_loss_is_least_at_the_quantiles() -> None:
    y = torch.from_numpy(np.random.default_rng(0).exponential(size=2001))
    best = torch.quantile(y, torch.tensor(QUANTILE_LEVELS, dtype=torch.float64))
    least = float(pinball(best.expand(len(y), 3), y).mean())
    for step in (-0.01, 0.01):
        for k in range(3):
            moved = best.clone()
            moved[k] += step
            assert float(pinball(moved.expand(len(y), 3), y).mean()) > least


def test_answers_of_quantiles_are_in_order_and_of_classes_probabilities() -> None:
    raw = torch.from_numpy(drawn(5, 3))
    assert bool((answers(raw, QUANTILES).diff(dim=1) >= 0).all())
    assert torch.allclose(answers(raw, CLASSES).sum(dim=1), torch.ones(5).double())
    assert torch.equal(answers(raw[:, :1], MEAN), raw[:, :1])
    assert torch.equal(losses(raw[:, :1], raw[:, 1], MEAN), (raw[:, 0] - raw[:, 1]).square())
    with pytest.raises(InvalidShape, match=r"must be \(n, 3\) and \(n,\) for quantiles"):
        losses(raw[:, :2], raw[:, 0], QUANTILES)


def visits(patients: int, each: int) -> list[str]:
    return [f"p{k}" for k in range(patients) for _ in range(each)]


def test_intervals_cover_the_truth_as_often_as_they_say_and_rows_of_a_patient_count_as_one() -> None:
    covered, by_rows = 0, 0
    for repeat in range(200):
        effect = drawn(40, seed=repeat)
        targets = np.repeat(effect, 5) + 0.1 * drawn(200, seed=repeat + 1000)
        outputs = np.zeros((200, 1))
        found = m.interval(m.MAE, outputs, targets, visits(40, 5), seed=repeat, level=0.9, draws=300)
        rows = m.interval(m.MAE, outputs, targets, visits(200, 1), seed=repeat, level=0.9, draws=300)
        truth = math.sqrt(2 / math.pi * 1.01)
        assert None not in (found.low, found.high, rows.low, rows.high)
        covered += found.low <= truth <= found.high  # type: ignore[operator]
        by_rows += rows.low <= truth <= rows.high  # type: ignore[operator]
    assert 0.83 <= covered / 200 <= 0.96
    assert by_rows / 200 < 0.65


def test_intervals_are_drawn_from_the_seed() -> None:
    outputs, targets = drawn(30, 1), drawn(30, seed=1)
    first, again, other = (
        m.interval(m.RMSE, outputs, targets, visits(10, 3), seed=seed, draws=100) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first.value == m.RMSE(outputs, targets)
    assert first.to_json() == {
        "value": first.value,
        "low": first.low,
        "high": first.high,
        "level": 0.95,
        "draws": 100,
    }
    wide = m.interval(m.RMSE, outputs, targets, visits(10, 3), seed=1, draws=100, level=0.99)
    assert wide.low < first.low < first.high < wide.high  # type: ignore[operator]


@pytest.mark.parametrize("rows", [40, 400])
def test_portions_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets, patients = drawn(rows, 1), drawn(rows, seed=1), visits(rows // 2, 2)
    told, classes = np.random.default_rng(0).dirichlet(np.ones(3), rows).round(2), np.arange(float(rows)) % 3

    def all_of_them() -> list[m.Interval]:
        return [
            *(m.interval(metric, outputs, targets, patients, seed=3) for metric in (m.RMSE, m.MAE, m.R2)),
            *(m.interval(metric, told, classes, patients, seed=3) for metric in (m.LOG_LOSS, m.AUC)),
            m.paired_difference(targets, outputs[:, 0], patients, seed=3),
        ]

    monkeypatch.setattr(m, "PORTION", rows * 24)
    in_portions = all_of_them()
    weights = m.patient_draws(patients, rows, seed=3, draws=m.DRAWS)
    monkeypatch.setattr(m, "PORTION", rows * m.DRAWS)
    assert np.array_equal(m.patient_draws(patients, rows, seed=3, draws=m.DRAWS), weights)
    assert all_of_them() == in_portions


def test_memory_does_not_grow_with_the_table() -> None:
    outputs, targets = drawn(20_000, 1), drawn(20_000, seed=1)
    tracemalloc.start()
    m.interval(m.R2, outputs, targets, visits(10, 2000), seed=0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 64 << 20


def test_draws_without_a_value_are_left_out_and_counted() -> None:
    outputs = np.stack([1 - np.linspace(0.1, 0.9, 8), np.linspace(0.1, 0.9, 8)], axis=1)
    rare = m.interval(m.AUC, outputs, np.eye(8)[6], visits(8, 1), seed=0)
    assert rare.draws == pytest.approx(2000 * (1 - (7 / 8) ** 8), abs=60)
    assert rare.value == pytest.approx(6 / 7)
    absent = m.interval(m.AUC, outputs, np.zeros(8), visits(8, 1), seed=0)
    assert (absent.value, absent.low, absent.draws) == (None, None, 0)


def test_a_paired_difference_sees_what_separate_intervals_do_not() -> None:
    common = np.square(drawn(60))
    worse, better = common + 0.05 + 0.02 * drawn(60, seed=1), common
    found = m.paired_difference(worse, better, visits(30, 2), seed=0)
    assert 0 < found.low < found.value < found.high < 0.1  # type: ignore[operator]
    back = m.paired_difference(better, worse, visits(30, 2), seed=0)
    assert (back.value, back.low) == pytest.approx((-found.value, -found.high))  # type: ignore[operator]
    seeds = np.stack([worse - 0.5, worse + 0.5])
    assert m.paired_difference(seeds, better, visits(30, 2), seed=0).low == pytest.approx(found.low)


def test_what_has_no_interval_is_refused() -> None:
    outputs, targets = drawn(6, 1), drawn(6, seed=1)
    with pytest.raises(InvalidShape, match="1 patients: a bootstrap needs 2"):
        m.interval(m.RMSE, outputs, targets, visits(1, 6), seed=0)
    with pytest.raises(InvalidShape, match="4 patients for 6 rows"):
        m.interval(m.RMSE, outputs, targets, visits(4, 1), seed=0)
    with pytest.raises(InvalidConfig, match="level = 1"):
        m.interval(m.RMSE, outputs, targets, visits(6, 1), seed=0, level=1)
    with pytest.raises(InvalidConfig, match="draws = 0"):
        m.interval(m.RMSE, outputs, targets, visits(6, 1), seed=0, draws=0)
