"""Two models' answers side by side: paired differences, tables, and Bland & Altman's plot."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.compression.reports import agreement
from models.learning.metrics import ACCURACY, RMSE
from models.learning.task import Task
from models.types import Array
from workers.answers import pairs_csv
from workers.cohorts import Row
from workers.comparing import Pairs
from workers.judgement import difference, figure
from workers.plots import HEIGHT, LEFT, LIMIT, POINT, RIGHT, WIDTH, Axis, agreement_png

MEAN, QUANTILES, CLASSES = Task("mean"), Task("quantiles"), Task("classes", ("a", "b", "c"))


def answers(task: Task, rows: int, seed: int) -> Array:
    drawn = np.random.default_rng(seed).normal(size=(rows, task.outputs))
    return np.exp(drawn) / np.exp(drawn).sum(axis=1, keepdims=True) if task is CLASSES else np.sort(drawn)


def pairs(task: Task, rows: int = 40) -> Pairs:
    """Every patient has two rows."""
    rng = np.random.default_rng(5)
    targets = rng.integers(0, 3, rows).astype(float) if task is CLASSES else rng.normal(size=rows)
    before = answers(task, rows, 1)
    after = 0.9 * before + 0.1 * answers(task, rows, 2)
    patients = tuple(f"p{row // 2}" for row in range(rows))
    return Pairs(task, np.arange(rows), before, after, targets, patients)


def test_a_difference_is_drawn_in_pairs() -> None:
    both = pairs(MEAN)
    found = difference(RMSE, (both.before, both.after), both.targets, both.patients, 0)
    first, second = (figure(RMSE, each, both.targets, both.patients, 0) for each in (both.before, both.after))
    assert found.value is not None
    assert first.value is not None
    assert second.value is not None
    assert found.value == pytest.approx(second.value - first.value, rel=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert first.low is not None
    assert first.high is not None
    assert found.high - found.low < 0.5 * (first.high - first.low)
    none = difference(RMSE, (both.before, both.before), both.targets, both.patients, 0)
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("task", [MEAN, QUANTILES, CLASSES], ids=lambda task: task.kind)
def test_one_number_of_each_answer_is_compared(task: Task) -> None:
    both = pairs(task)
    before, after = both.indicators
    column = {"mean": 0, "quantiles": 1}.get(task.kind)
    rows = np.arange(len(before))
    chosen = both.before.argmax(axis=1) if column is None else np.full(len(before), column)
    assert np.array_equal(before, both.before[rows, chosen])
    assert np.array_equal(after, both.after[rows, chosen])
    assert both.largest_change == np.abs(both.after - both.before).max() >= np.abs(after - before).max()
    changed = both.other_classes
    assert changed == (None if task is not CLASSES else (both.after.argmax(axis=1) != chosen).sum())
    names = [metric.name for metric, _ in both.metrics(0)]
    assert names[0] == {"mean": "rmse", "quantiles": "pinball", "classes": "log_loss"}[task.kind]


def test_metrics_that_rise_are_after_less_before_too() -> None:
    both = pairs(CLASSES)
    found = {metric.name: each for metric, each in both.metrics(0)}["accuracy"]
    right = [(each.argmax(axis=1) == both.targets).mean() for each in (both.before, both.after)]
    assert found.difference.value == pytest.approx(right[1] - right[0])
    assert found.before.value == ACCURACY(both.before, both.targets)


@pytest.mark.parametrize("task", [QUANTILES, CLASSES], ids=lambda task: task.kind)
def test_every_number_of_an_answer_stands_in_the_table(task: Task) -> None:
    both = pairs(task, 4)
    rows = [
        Row(volume_id=f"vol_{n}", patient="=1+1", target=f"-x{n}" if task is CLASSES else n) for n in range(6)
    ]
    lines = list(
        csv.DictReader(io.StringIO(pairs_csv(rows, [5, 0, 3, 1], task, both.before, both.after).decode()))
    )
    assert [(line["row"], line["volume_id"]) for line in lines] == [
        ("5", "vol_5"),
        ("0", "vol_0"),
        ("3", "vol_3"),
        ("1", "vol_1"),
    ]
    assert {line["patient"] for line in lines} == {"'=1+1"}
    ends = [f" quantile {q}" for q in ("0.2", "0.5", "0.8")]
    for column, end in enumerate(ends if task is QUANTILES else [f" probability of {n}" for n in "abc"]):
        told = np.array([[float(line[f"{when}{end}"]) for when in ("before", "after")] for line in lines])
        assert np.array_equal(told, np.stack([both.before[:, column], both.after[:, column]], axis=1))
        assert [float(line[f"difference{end}"]) for line in lines] == (told[:, 1] - told[:, 0]).tolist()


def drawn(before: Array, after: Array) -> Array:
    change = agreement(torch.from_numpy(before), torch.from_numpy(after))
    with Image.open(io.BytesIO(agreement_png(before, after, change, "age (years)", "notice"))) as picture:
        return np.asarray(picture)


def coloured(pixels: Array, colour: tuple[int, int, int]) -> Array:
    """Rows and columns of a colour inside the field."""
    found = np.argwhere((pixels == colour).all(axis=2))
    return found[(found[:, 1] > LEFT) & (found[:, 1] < WIDTH - RIGHT)]


def test_limits_are_drawn_where_they_are() -> None:
    before = np.linspace(40, 80, 5)
    after = before + np.array([0.0, 1.0, -1.0, 2.0, -2.0])
    pixels = drawn(before, after)
    rows = np.unique(coloured(pixels, LIMIT)[:, 0])
    points = coloured(pixels, POINT)
    assert len(rows) == 2
    middle, spread = (points[:, 0].min() + points[:, 0].max()) / 2, np.ptp(points[:, 0])
    assert rows.mean() == pytest.approx(middle, abs=1.5)
    limit = 1.96 * np.std(after - before, ddof=1)
    assert np.ptp(rows) / spread == pytest.approx(limit / 2, rel=0.05)
    assert np.ptp(points[:, 1]) > 0.7 * (WIDTH - LEFT - RIGHT)


@pytest.mark.parametrize("values", [[0.0], [1e-9, 2e-9], [1e12, 1e12 + 1], [-5.0, -5.0, -5.0]])
def test_pictures_of_few_or_equal_or_odd_answers(values: list[float]) -> None:
    before = np.array(values)
    assert drawn(before, before).shape == (HEIGHT, WIDTH, 3)
    assert len(coloured(drawn(before, before + 1e-3), POINT)) > 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-7, 2e-7), (1e6, 1e6 + 3), (-87, 913)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    axis = Axis.over(np.array([low, high]), 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(0 <= axis(tick) <= 100 for tick in ticks)
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)
