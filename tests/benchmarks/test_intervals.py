"""The splits that intervals are measured on, and what is measured on numbers of known coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import intervals
from models.learning.conformal import COVERAGES


def patients(counts):
    return [f"p{k:02d}" for k in range(sum(counts)) for _ in range(2)]


@pytest.mark.parametrize("counts", [(49, 79, 32), (8, 19, 6), (73, 39, 28)])
def test_everybody_is_asked_about_equally_often_and_calibrates_nearly_so(counts):
    people = patients(counts)
    asked, calibrated = np.zeros(len(people)), np.zeros(len(people))
    for number in range(11 if counts[2] == 6 else 10):
        split = intervals.rotated(people, counts, number)
        parts = [split.train, split.calibration, split.test]
        assert [len(part) for part in parts] == [2 * count for count in counts]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(people)))
        asked[split.test] += 1
        calibrated[split.calibration] += 1
    assert np.ptp(asked) == 0
    assert np.ptp(calibrated) <= 2
    one, other = (intervals.rotated(people, counts, number).test for number in (0, 11))
    assert not np.array_equal(one, other)


def test_coverage_is_measured_by_level_and_told_as_json(monkeypatch):
    monkeypatch.setattr(intervals, "SPLITS", 4)
    monkeypatch.setattr(intervals, "MANY_SPLITS", 8)
    monkeypatch.setitem(intervals.COUNTS, "made", (20, 39, 20))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(79, 3))
    targets = features.sum(axis=1) + 0.1 * rng.normal(size=79)
    names = tuple(f"p{k:02d}" for k in range(79))
    rows = intervals.Rows("made", "itself", "units", features, np.zeros((79, 0)), targets, names)
    found = json.loads(json.dumps(intervals.measured(rows), allow_nan=False))
    for column in ("split", "split_many", "cv_plus", "constant"):
        assert [row["level"] for row in found[column]] == list(COVERAGES)
        coverage, widths = ([row[key] for row in found[column]] for key in ("coverage", "width"))
        assert coverage == pytest.approx(COVERAGES, abs=0.12)
        assert widths == sorted(widths)
    assert found["split"][0]["width"] < 0.2 * found["constant"][0]["width"]
    assert len(found["noise"]) == len(COVERAGES)
