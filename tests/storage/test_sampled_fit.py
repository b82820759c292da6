"""Samples of tiles stand for the whole, and a setting is found on them with few trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.compressors.base import Setting
from storage.compressors.goals import Goal
from storage.compressors.sampled import (
    Code,
    Estimate,
    Sample,
    Tile,
    drawn,
    estimated,
    inclusion,
    searched,
)
from storage.compressors.search import TRIALS

SCALE = Setting("step", 1e-3, 1e5)


def test_chances_add_up_and_follow_activity_until_they_are_certain() -> None:
    activity = np.array([0.0, 1.0, 2.0, 4.0, 1000.0])
    chances = inclusion(activity, 3)
    assert chances.sum() == pytest.approx(3)
    assert chances[-1] == 1
    assert 0 < chances[0] < chances[1] < chances[2] < chances[3] < 1
    assert (inclusion(np.zeros(4), 2) == 0.5).all()


def test_sums_over_all_tiles_are_estimated_without_bias_and_better_than_by_chance_alone() -> None:
    generator = np.random.default_rng(0)
    activity = generator.exponential(1, 400) ** 2
    sizes = activity * generator.uniform(0.8, 1.2, 400)

    def estimates(of: NDArray[np.float64]) -> NDArray[np.float64]:
        found = []
        for seed in range(200):
            rows, weights = drawn(of, 24, seed)
            assert 22 <= len(rows) <= 26
            found.append(float(weights @ sizes[rows]))
        return np.array(found) / sizes.sum()

    by_activity, evenly = estimates(activity), estimates(np.ones(400))
    assert by_activity.mean() == pytest.approx(1, abs=0.01)
    assert evenly.mean() == pytest.approx(1, abs=0.1)
    assert by_activity.std() < 0.05 < evenly.std()


def test_few_tiles_are_all_drawn_and_a_seed_draws_the_same() -> None:
    rows, weights = drawn(np.arange(5.0), 5, 0)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert (weights == 1).all()
    first, again, other = (drawn(np.ones(100), 10, seed)[0].tolist() for seed in (3, 3, 4))
    assert first == again != other


class Quantiser:
    """Values rounded to steps, sized by their entropy; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def make(self, step: float) -> Code:
        def code(values: NDArray[Any], level: int) -> tuple[int, NDArray[Any]]:
            self.calls += 1
            told = np.rint(values / step) * step
            _, counts = np.unique(told, return_counts=True)
            bits = -float((counts * np.log2(counts / told.size)).sum())
            return 1 + int(bits / 8), told if level == 0 else values

        return code


@pytest.fixture
def sample() -> Sample:
    generator = np.random.default_rng(1)
    tiles = tuple(Tile(generator.normal(0, 100, (16, 16, 16)), 2.0, level) for level in (0, 0, 1))
    voxels = 4 * 16**3
    return Sample(tiles, 2 * voxels, voxels, 100, 600.0)


def test_an_estimate_weighs_sizes_and_errors(sample: Sample) -> None:
    made: list[tuple[int, NDArray[Any]]] = []

    def code(values: NDArray[Any], level: int) -> tuple[int, NDArray[Any]]:
        made.append((level, values))
        return 50, values + 3 if level == 0 else values

    found = estimated(sample, code, None)
    assert [level for level, _ in made] == [0, 0, 1]
    assert found.stored_bytes == 100 + 3 * 2 * 50
    assert found.ratio == sample.source_bytes / 400
    assert found.psnr == pytest.approx(20 * np.log10(600 / 3))
    assert found.max_error == pytest.approx(3)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_errors_of_any_size_are_squared(scale: float, sample: Sample) -> None:
    tiles = tuple(Tile(one.values * scale, one.weight, one.level) for one in sample.tiles)
    scaled = replace(sample, tiles=tiles, peak=sample.peak * scale)
    plain = estimated(sample, lambda values, level: (50, values + 3), None)
    told = estimated(scaled, lambda values, level: (50, values + 3 * scale), None)
    assert told.psnr == pytest.approx(plain.psnr)


@pytest.mark.parametrize(
    "goal", [Goal("ratio", 3), Goal("ratio", 8), Goal("psnr", 30), Goal("psnr", 60), Goal("bound", 7)]
)
def test_a_goal_is_met_and_hardly_exceeded(goal: Goal, sample: Sample) -> None:
    quantiser = Quantiser()
    tried: list[Estimate] = []
    found = searched(sample, quantiser.make, SCALE, goal, tried=tried.append)
    assert 0 <= goal.of(found) <= 0.05
    assert len(tried) <= TRIALS
    assert quantiser.calls == 3 * len(tried)
    again = searched(sample, quantiser.make, SCALE, goal, known=tried)
    assert again == found
    assert quantiser.calls == 3 * len(tried)


def test_what_cannot_be_met_ends_at_the_end_that_comes_nearest(sample: Sample) -> None:
    quantiser = Quantiser()
    large = searched(sample, quantiser.make, SCALE, Goal("ratio", 1e6))
    good = searched(sample, quantiser.make, SCALE, Goal("psnr", 250))
    assert (large.number, good.number) == (SCALE.coarsest, SCALE.finest)
    assert large.ratio < 1e6
    assert good.psnr < 250
    assert quantiser.calls <= 3 * 8
