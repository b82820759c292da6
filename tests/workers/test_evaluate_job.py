"""`evaluate` through the runner: what a model is worth on scans that it has not seen."""

from __future__ import annotations

import csv
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.cohorts import School, organ

from models.learning.conformal import Conformal
from models.learning.task import Task
from storage.jobs import Job, JobState
from workers.judgement import calibration, coverage
from workers.models import NOTICE


@pytest.fixture(scope="module")
def model(school: School) -> Job:
    return school.train()


@pytest.fixture(scope="module")
def others(school: School) -> list[dict[str, Any]]:
    """Four patients that are new, one of them with two rows about one scan."""
    rows = [
        {
            "volume_id": school.ingested(organ(target, 50 + number)),
            "patient": f"new-{number}",
            "target": target,
            "covariates": {"age": 50.0, "sex": float(number % 2)},
        }
        for number, target in enumerate((0.1, 0.4, 0.6, 0.9))
    ]
    return [*rows, {**rows[0], "covariates": {"age": 51.0, "sex": 0.0}}]


def evaluated(school: School, model: Job, rows: list[dict[str, Any]]) -> Job:
    return school.run("evaluate", {"model": model.id, "rows": rows})


def test_figures_on_scans_that_were_not_learnt_from(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    job = evaluated(school, model, others)
    result = job.result
    assert result is not None
    jsonschema.validate(result, school.catalogue.kind("evaluate").result_schema)
    assert result["notice"] == NOTICE
    assert (result["rows"], result["scans"], result["patients"]) == (5, 4, 4)
    assert result["warnings"] == []
    assert model.result is not None
    assert result["model_digest"] == model.result["model_digest"]
    assert result["metrics"]["r2"]["value"] > 0.8
    assert result["metrics"]["rmse"]["low"] <= result["metrics"]["rmse"]["value"]
    with school.artifact(job, "errors.csv").open() as file:
        lines = list(csv.DictReader(file))
    answers, targets, losses = (
        np.array([float(line[name]) for line in lines]) for name in ("answer", "target", "loss")
    )
    assert targets.tolist() == [row["target"] for row in others]
    assert np.allclose(losses, np.square(answers - targets))
    assert result["metrics"]["rmse"]["value"] == pytest.approx(np.sqrt(losses.mean()))
    low, high = (np.array([float(line[f"90% {end}"]) for line in lines]) for end in ("low", "high"))
    shares = {each["level"]: each["observed"] for each in result["coverage"]}
    assert shares[0.9] == pytest.approx(((low <= targets) & (targets <= high)).mean())
    assert shares[0.95] == 1  # endless: the model learnt from too few patients for it
    predicted = school.run(
        "predict", {"model": model.id, "covariates": others[2]["covariates"]}, others[2]["volume_id"]
    )
    assert predicted.result is not None
    assert answers[2] == pytest.approx(predicted.result["value"], abs=1e-9)
    assert sum(each["rows"] for each in result["calibration"]) == 5
    assert [each["told"] for each in result["calibration"]] == sorted(
        each["told"] for each in result["calibration"]
    )


def test_patients_and_scans_that_were_learnt_from_are_told(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    known = school.rows[3]
    job = evaluated(school, model, [*others, known, {**others[1], "covariates": {"age": 99.0, "sex": 0.0}}])
    assert job.result is not None
    told = {each["code"]: each["text"] for each in job.result["warnings"]}
    assert set(told) == {"patient-seen", "scan-seen", "covariate-outside"}
    assert told["patient-seen"].startswith("1 patients were learnt from, as patient-3")
    assert told["covariate-outside"].startswith("1 of 7 rows; age = 99")
    disguised = evaluated(school, model, [*others, {**known, "patient": "somebody"}])
    assert disguised.result is not None
    assert [each["code"] for each in disguised.result["warnings"]] == ["scan-seen"]


def test_one_patient_gives_values_without_intervals(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    result = evaluated(school, model, [{**others[0], "fold": 3}]).result
    assert result is not None
    assert result["metrics"]["rmse"]["value"] is not None
    assert (result["metrics"]["rmse"]["low"], result["metrics"]["r2"]["value"]) == (None, None)


def test_rows_that_do_not_fit_the_model_are_named(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    rows = [dict(row) for row in others]
    rows[0]["covariates"] = {"age": 50.0, "weight": 1.0}
    rows[1]["target"] = "much"
    rows[2]["volume_id"] = "vol_1"
    job = evaluated(school, model, rows)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "invalid-cohort")
    assert [where for where, _ in job.error["problems"]] == [
        "/rows/2/volume_id",
        "/rows/1/target",
        "/rows/0/covariates/sex",
        "/rows/0/covariates/weight",
    ]


def test_classes_are_judged_by_name(school: School, others: list[dict[str, Any]]) -> None:
    def named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "target": "ill" if row["target"] > 0.5 else "well"} for row in rows]

    model = school.train(named(school.rows), task="classes")
    result = evaluated(school, model, named(others)).result
    assert result is not None
    assert set(result["metrics"]) == {"log_loss", "accuracy", "auc"}
    assert {each["of"] for each in result["calibration"]} == {"ill", "well"}
    foreign = evaluated(school, model, [{**others[0], "target": "dead"}])
    assert foreign.error is not None
    assert "none of the classes ill, well" in foreign.error["detail"]


def test_coverage_counts_truths_within_by_rows() -> None:
    task = Task("mean")
    outputs, targets = np.zeros((40, 1)), np.linspace(-1, 1, 40)
    patients = [f"p{i}" for i in range(40)]
    conformal = Conformal.of(outputs, targets, patients, task)
    for level, share in coverage(conformal, outputs, targets, patients, 0):
        assert share.value is not None
        assert level <= share.value <= level + 0.05
        assert share.low is not None
        assert share.low < share.value or share.value == 1


def test_calibration_of_each_task() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1, 5000)
    means = calibration(truth[:, None] * 0.5, truth, Task("mean"))
    assert [each.rows for each in means] == [1000] * 5
    assert all(each.true == pytest.approx(2 * each.told) for each in means)
    quantiles = np.tile(np.quantile(truth, (0.2, 0.5, 0.8)), (5000, 1))
    for each in calibration(quantiles, truth, Task("quantiles")):
        assert each.true == pytest.approx(each.told, abs=1e-3)
    probability = generator.uniform(0, 1, 5000)
    came = (generator.uniform(0, 1, 5000) < probability).astype(float)
    outputs = np.stack([1 - probability, probability], axis=1)
    for each in calibration(outputs, came, Task("classes", ("no", "yes"))):
        assert each.true == pytest.approx(each.told, abs=0.06)
