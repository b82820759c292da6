"""The splits that intervals are measured on, and what is measured on numbers of known coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import intervals
from models.cpic.fibres import FibreConfig
from models.learning.conformal import COVERAGES, Conformal
from models.learning.folds import patient_folds
from models.regressors.cpic import Cpic
from models.regressors.encoders import EncoderConfig
from models.regressors.readouts import FibreReadoutConfig


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


def made(people: int, noise: float = 0.1) -> intervals.Rows:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(people, 3))
    targets = features.sum(axis=1) + noise * rng.normal(size=people)
    names = tuple(f"p{k:02d}" for k in range(people))
    return intervals.Rows("made", "itself", "units", features, np.zeros((people, 0)), targets, names)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(intervals, "SPLITS", 4)
    monkeypatch.setattr(intervals, "MANY_SPLITS", 8)
    monkeypatch.setitem(intervals.COUNTS, "made", (20, 39, 20))


def test_coverage_is_measured_by_level_and_told_as_json(few):
    found = json.loads(json.dumps(intervals.measured(made(79)), allow_nan=False))
    shipped = found["as_shipped"]
    tables = [
        *(found[column] for column in ("split", "split_many", "cv_plus", "constant")),
        *shipped.values(),
    ]
    for rows in (*tables, found["quantiles"]["as_shipped"]):
        assert [row["level"] for row in rows] == list(COVERAGES)
        coverage, widths = ([row[key] for row in rows] for key in ("coverage", "width"))
        assert coverage == pytest.approx(COVERAGES, abs=0.12)
        assert widths == sorted(widths)
    assert found["split"][0]["width"] < 0.2 * found["constant"][0]["width"]
    assert len(found["noise"]) == len(COVERAGES)
    assert shipped["auto"] == shipped["ridge"] != shipped["constant"]
    own = found["quantiles"]["own"]
    assert own["level"] == 0.6
    assert own["coverage"] == pytest.approx(0.6, abs=0.15)
    assert own["width"] < found["quantiles"]["as_shipped"][0]["width"]


def test_intervals_as_shipped_are_those_of_answers_out_of_fold_about_the_model_of_all_rows():
    rows = made(60)
    split = intervals.rotated(rows.patients, (20, 20, 20), 0)
    known = np.setdiff1d(np.arange(60), split.test)
    told, covered = intervals.shipped(
        intervals.cohort_of(rows), split, {"ridge": intervals.RIDGE}, intervals.TASK
    )
    assert np.allclose(told, intervals.head_of(rows, known)(split.test))
    patients = [rows.patients[row] for row in known]
    folds = patient_folds(patients, 5, seed=intervals.SEED, targets=rows.targets[known])
    out = np.empty((40, 1))
    for fold in range(5):
        out[folds == fold] = intervals.head_of(rows, known[folds != fold])(known[folds == fold])
    found = Conformal.of(out, rows.targets[known], patients, intervals.TASK, method="out-of-fold")
    assert covered.widths == pytest.approx([2 * q for q in found.thresholds], rel=0.05)
    inside = np.abs(told[:, 0] - rows.targets[split.test]) <= covered.widths[0] / 2
    assert covered.coverage[0] == pytest.approx(inside.mean())


def test_gaps_are_the_largest_of_all_readers_and_recipes():
    def rows(*coverage):
        return [{"level": level, "coverage": told} for level, told in zip(COVERAGES, coverage, strict=True)]

    exact = rows(*COVERAGES)
    one = {
        "cohort": "made",
        "split": rows(0.81, 0.9, 0.95),
        "split_many": exact,
        "as_shipped": {"constant": exact, "ridge": rows(0.8, 0.85, 0.95)},
        "quantiles": {"own": {"level": 0.6, "coverage": 0.5}},
    }
    other = {**one, "split": rows(0.8, 0.9, 0.93)}
    assert intervals.gaps_of([one, other]) == {
        "made_coverage_gap": 0.02,
        "made_coverage_gap_of_many": 0,
        "made_coverage_gap_as_shipped": 0.05,
        "made_quantiles_gap": 0.1,
    }


def test_cpic_answers_everybody_once_as_shipped(monkeypatch, capsys):
    monkeypatch.setattr(intervals, "CPIC_SIZE", 8)
    monkeypatch.setattr(intervals, "CPIC_COUNTS", (3, 3, 3))
    monkeypatch.setattr(intervals, "CPIC_SPLITS", 3)
    monkeypatch.setattr(intervals, "SHIPPED_FOLDS", 2)
    fibres = FibreConfig(layout="qtt", rank=2)
    small = Cpic(
        encoder=EncoderConfig(hidden=(2,), features=2),
        starts=1,
        steps=1,
        voxels=20,
        readout=FibreReadoutConfig(fibres, counts=(2,), poolings=(1,)),
    )
    monkeypatch.setattr(intervals, "CPIC_RECIPE", small)
    found = intervals.run([intervals.CPIC])
    shipped = found["cpic_as_shipped"]
    assert (shipped["people"], shipped["rows"], shipped["splits"], shipped["steps"]) == (9, 9, 3, 1)
    assert [row["level"] for row in shipped["as_shipped"]] == list(COVERAGES)
    assert shipped["r2"] < 1
    assert "cohorts" not in found
    intervals.show(found)
    assert "as shipped, cpic" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no part tables"):
        intervals.run(["tables"])
