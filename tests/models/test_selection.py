"""Which regressor is taken, and why."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.errors import InvalidConfig, InvalidShape
from models.learning.selection import auto
from models.types import Array

PATIENTS = [f"p{k // 3}" for k in range(180)]


def losses(*gains: float, noise: float = 0.05) -> dict[str, Array]:
    """Candidates that differ from a common loss by a gain and noise of their own."""
    rng = np.random.default_rng(0)
    common = np.square(rng.normal(size=180))
    return {f"c{k}": common - gain + noise * rng.normal(size=180) for k, gain in enumerate(gains)}


def test_the_simplest_is_taken_where_none_is_better() -> None:
    found = auto(losses(0, 0, 0), PATIENTS, seed=0)
    assert found.chosen == "c0"
    assert not found.candidates[0].beaten_by
    assert found.candidates[0].reason == "the simplest that none beats at 68 %"
    assert "c0" in found.candidates[1].reason


def test_a_better_one_is_taken_and_the_simplest_of_equals() -> None:
    found = auto(losses(0, 0.2, 0.2, 0.1), PATIENTS, seed=0, level=0.95)
    assert found.chosen == "c1"
    simplest, _, third, last = found.candidates
    assert set(simplest.beaten_by) == {"c1", "c2", "c3"}
    assert simplest.beaten_by["c1"].value == pytest.approx(0.2, abs=0.02)
    assert simplest.reason.startswith("beaten by c2: 0.196 (0.187 to ")
    assert not third.beaten_by
    assert set(last.beaten_by) == {"c1", "c2"}


def test_a_gain_within_its_interval_does_not_outweigh_simplicity() -> None:
    noisy = losses(0, 0.1, noise=2.0)
    assert auto(noisy, PATIENTS, seed=0).chosen == "c0"
    seeds = {name: np.stack([values + s for s in (-1.0, 1.0)]) for name, values in losses(0, 0.1).items()}
    assert auto(seeds, PATIENTS, seed=0).chosen == "c1"
    assert auto(losses(0, 0.008), PATIENTS, seed=0, level=0.999).chosen == "c0"
    assert auto(losses(0, 0.02), PATIENTS, seed=0, level=0.5).chosen == "c1"


def test_rows_of_one_patient_are_not_taken_for_many() -> None:
    """A gain of 0.2 that 12 patients differ about: each has 15 equal rows."""
    rng = np.random.default_rng(0)
    effect = np.repeat(rng.normal(0.2, 0.6, 12), 15)
    both = {"simple": effect, "complex": np.zeros(180)}
    assert auto(both, [f"p{k // 15}" for k in range(180)], seed=0, level=0.95).chosen == "simple"
    assert auto(both, [f"p{k}" for k in range(180)], seed=0, level=0.95).chosen == "complex"


def test_a_gain_of_more_than_a_standard_error_is_enough() -> None:
    """Of 40 patients that differ about it: the mean gain is so many of its standard errors."""
    rng = np.random.default_rng(0)
    differ = rng.normal(size=40)
    differ = (differ - differ.mean()) / differ.std()
    for errors, chosen in ((0.8, "simple"), (1.2, "complex")):
        both = {"simple": differ + errors / 40**0.5, "complex": np.zeros(40)}
        assert auto(both, [f"p{k}" for k in range(40)], seed=0).chosen == chosen


def test_reasons_are_plain_json() -> None:
    told = json.loads(json.dumps(auto(losses(0, 0.2), PATIENTS, seed=0).to_json(), allow_nan=False))
    assert told["chosen"] == "c1"
    assert told["level"] == 0.68
    assert told["candidates"][0]["beaten_by"]["c1"]["low"] > 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="one regressor or more"):
        auto({}, PATIENTS, seed=0)
    with pytest.raises(InvalidShape, match=r"losses of \[179, 180\] rows"):
        auto({"a": np.zeros(180), "b": np.zeros(179)}, PATIENTS, seed=0)
    assert auto({"alone": np.zeros(180)}, PATIENTS, seed=0).chosen == "alone"
