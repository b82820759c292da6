"""Made cohorts: boxes agree, targets are exact, nothing of them is left at half resolution."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import cohorts
from benchmarks.cohorts.made import STEP, Protocol

SMALL = Protocol(train_people=4, train_volumes=2, test_volumes=5)


@pytest.fixture(scope="module")
def heads():
    return cohorts.phantom_heads(6)


@pytest.fixture(scope="module")
def spread(heads):
    return cohorts.spread(32, heads=heads, protocol=SMALL)


def test_any_box_of_a_made_volume_agrees_with_the_volume_in_memory(spread):
    made = spread.sources[0]
    kept = made.dense()
    origins = np.random.default_rng(0).integers(-9, 34, (60, 3))
    for size in (1, 5, (2, 9, 16)):
        assert np.array_equal(made.cubes(origins, size), kept.cubes(origins, size))
    whole = made.cubes(np.zeros((1, 3), np.int64), 32)[0, 0]
    assert whole.dtype == np.float32
    assert np.array_equal(whole, kept.array)
    assert len(np.unique(np.rint(whole / STEP))) > 500


def test_a_protocol_parts_people(spread):
    train, test = (
        {spread.patients[row] for row in rows.tolist()} for rows in (spread.split.train, spread.split.test)
    )
    assert (len(spread.split.train), len(spread.split.test)) == (8, 5)
    assert (len(train), len(test), train & test) == (4, 2, set())
