"""`train` through the runner: what is made of a cohort, what is refused, and what is not done twice."""

from __future__ import annotations

import csv
import json
import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import pytest
from support.cohorts import School, bare, organ, without
from support.scans import files_below, upload

from models.errors import InvalidShape
from models.learning.preparation import Preparation, PreparationConfig, RawScan
from models.regressors import REGRESSORS
from models.regressors.voxel_ridge import VoxelRidge
from storage.artifacts import read_tensors
from storage.checkpoints import NAME, Checkpoints, checkpoint_folder
from storage.errors import CohortNotReady, InvalidCohort, InvalidParameters, StorageFull
from storage.jobs import Job, JobState
from storage.records import VolumeState
from workers import preparing
from workers.cohorts import MOST_CLASSES, MOST_COVARIATES, Row, Table, training_table
from workers.jobs.train import Train, recipes_of
from workers.models import NOTICE
from workers.preparing import mixed

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(school: School) -> Job:
    return school.train()


def test_a_training_makes_a_model_its_figures_and_answers_out_of_fold(school: School, trained: Job) -> None:
    result = trained.result
    assert result is not None
    jsonschema.validate(result, school.catalogue.kind("train").result_schema)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["notice"] == NOTICE
    assert (result["rows"], result["scans"], result["patients"], result["folds"]) == (14, 14, 14, 3)
    assert (result["covariates"], result["regressor"]) == (["age", "sex"], "voxel_ridge")
    assert [each["regressor"] for each in result["compared"]] == ["voxel_ridge", "constant", "tabular"]
    assert result["metrics"]["r2"]["value"] > 0.6
    assert result["metrics"]["r2"]["low"] < result["metrics"]["r2"]["value"]
    assert result["compared"][1]["metrics"]["r2"]["value"] < 0
    by_level = {each["level"]: each for each in result["intervals"]}
    assert 0 < by_level[0.8]["threshold"] <= by_level[0.9]["threshold"]
    assert (by_level[0.95]["threshold"], by_level[0.95]["needed"]) == (None, 19)
    assert [warning["code"] for warning in result["warnings"]] == ["few-scans"]
    assert [artifact.name for artifact in trained.artifacts] == [
        "model.safetensors",
        "metrics.json",
        "predictions.csv",
    ]
    assert trained.artifacts[0].sha256 == result["model_digest"]
    assert files_below(school.root / "checkpoints") == []

    figures = json.loads(school.artifact(trained, "metrics.json").read_text())
    assert [trial["regressor"] for trial in figures["trials"]] == ["constant", "tabular", "voxel_ridge"]
    assert all(len(trial["folds"]) == 3 for trial in figures["trials"])
    rmse = figures["trials"][2]["scores"][0]
    assert (rmse["name"], len(rmse["folds"])) == ("rmse", 3)
    assert rmse["pooled"]["value"] == result["metrics"]["rmse"]["value"]
    with school.artifact(trained, "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["volume_id"] for line in lines] == [row["volume_id"] for row in school.rows]
    errors = [float(line["answer"]) - float(line["target"]) for line in lines]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(result["metrics"]["rmse"]["value"])
    assert all(float(line["90% low"]) < float(line["answer"]) < float(line["90% high"]) for line in lines)


def test_the_model_knows_what_it_was_made_of(school: School, trained: Job) -> None:
    path = school.artifact(trained, "model.safetensors")
    tensors, manifest = read_tensors(path)
    assert tensors
    assert (manifest["schema"], manifest["notice"], manifest["regressor"]) == (2, NOTICE, "voxel_ridge")
    assert manifest["settings"] == {"grid": 3}
    assert manifest["target"] == {"name": "target", "unit": ""}
    ages = [row["covariates"]["age"] for row in school.rows]
    assert manifest["covariates"][0] == {"name": "age", "least": min(ages), "most": max(ages)}
    volumes = [school.catalogue.volume(row["volume_id"]).stored for row in school.rows]
    assert manifest["training"]["volumes"] == [stored.digest for stored in volumes if stored is not None]
    assert manifest["training"]["rows"] == 14
    assert manifest["scores"][0]["name"] == "rmse"
    for secret in (*(row["patient"] for row in school.rows), trained.id):
        assert secret.encode() not in path.read_bytes()


def test_same_seed_same_bytes(school: School, trained: Job) -> None:
    digests = [(school.train(seed=seed).result or {})["model_digest"] for seed in (0, 1)]
    assert trained.result is not None
    assert digests[0] == trained.result["model_digest"] != digests[1]


def test_scans_that_are_read_again_and_again_give_the_same_bytes_as_held_ones(
    school: School, trained: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "HELD_SHARE", 1 << 50)
    again = school.train(settings={"grid": 3})
    assert (again.result or {})["model_digest"] == (trained.result or {})["model_digest"]


def test_quantiles_of_millilitres_get_the_lung_cohorts_likelihood(school: School) -> None:
    result = school.train(task="quantiles", target_unit="ml").result
    assert result is not None
    assert set(result["metrics"]) == {"pinball", "rmse", "mae", "r2", "mlll"}


def test_classes_by_name(school: School) -> None:
    rows = [{**row, "target": "ill" if row["target"] > 0.5 else "well"} for row in school.rows]
    job = school.train(rows, task="classes", classes=["well", "ill"])
    assert job.result is not None
    assert job.result["classes"] == ["well", "ill"]
    assert job.result["metrics"]["accuracy"]["value"] > 0.7
    with school.artifact(job, "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all(
        float(line["probability of well"]) + float(line["probability of ill"]) == pytest.approx(1)
        for line in lines
    )


def test_the_tables_own_folds_are_used(school: School) -> None:
    rows = [{**row, "fold": number % 4 + 5} for number, row in enumerate(school.rows)]
    job = school.train(rows)
    assert (job.result or {})["folds"] == 4
    with school.artifact(job, "predictions.csv").open() as file:
        assert [int(line["fold"]) for line in csv.DictReader(file)] == [number % 4 for number in range(14)]


def test_auto_takes_the_simplest_and_says_why(school: School) -> None:
    job = school.train(regressor="auto", candidates=["voxel_ridge"], settings={"voxel_ridge": {"grid": 3}})
    assert job.result is not None
    assert job.result["regressor"] == "voxel_ridge"
    assert job.result["compared"][0]["reason"] == "the simplest that none beats at 68 %"
    told = {warning["code"]: warning["text"] for warning in job.result["warnings"]}
    assert set(told) == {"few-scans", "chosen-by-these-figures"}
    assert told["chosen-by-these-figures"].startswith("voxel_ridge was chosen of 3 by these very figures")


def test_a_simpler_recipe_that_is_as_good_is_told(school: School) -> None:
    result = school.train(regressor="tabular", settings={}).result
    assert result is not None
    (warning,) = result["warnings"]
    assert warning["code"] == "another-is-as-good"
    assert warning["text"].startswith("constant is as good")
    assert result["reasons"][0].startswith("asked for by name; ")


class Recorded(VoxelRidge):
    """Counts its trainings, and fails at one of them."""

    name: ClassVar[str] = "recorded"
    begun: ClassVar[int] = 0
    fails_at: ClassVar[int] = -1
    failure: ClassVar[Exception] = StorageFull("the disk is full")

    def fit(self, *args: Any, **options: Any) -> Any:
        type(self).begun += 1
        if type(self).begun - 1 == type(self).fails_at:
            raise type(self).failure
        return super().fit(*args, **options)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setitem(REGRESSORS, Recorded.name, Recorded)
    monkeypatch.setattr(Recorded, "begun", 0)
    monkeypatch.setattr(Recorded, "fails_at", -1)
    return Recorded


def test_finished_folds_are_not_trained_again(
    school: School, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = school.train(regressor="recorded")
    assert recorded.begun == 4
    monkeypatch.setattr(recorded, "begun", 0)
    monkeypatch.setattr(recorded, "fails_at", 2)
    waiting = school.train(regressor="recorded")
    assert (waiting.state, recorded.begun) == (JobState.QUEUED, 3)
    kept = checkpoint_folder(school.root, waiting.id) / "recorded"
    assert sorted(path.name for path in kept.iterdir()) == ["fold-0", "fold-1"]
    ended = school.runner.run(waiting.id)
    assert ended is not None
    assert (ended.state, ended.attempt, recorded.begun) == (JobState.SUCCEEDED, 2, 5)
    assert (ended.result or {})["model_digest"] == (undisturbed.result or {})["model_digest"]
    assert files_below(school.root / "checkpoints") == []


def test_a_fold_whose_checkpoint_is_damaged_is_trained_again(
    school: School,
    recorded: type[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recorded, "fails_at", 2)
    waiting = school.train(regressor="recorded")
    damaged = checkpoint_folder(school.root, waiting.id) / "recorded" / "fold-1" / "answers" / NAME
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        ended = school.runner.run(waiting.id)
    assert ended is not None
    assert (ended.state, recorded.begun) == (JobState.SUCCEEDED, 6)
    assert "is damaged and is not used" in caplog.text


def test_a_candidate_that_cannot_take_the_cohort_is_passed_over_and_told(
    school: School, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "fails_at", 1)
    monkeypatch.setattr(recorded, "failure", InvalidShape("scans are too small"))
    job = school.train(regressor="auto", candidates=["voxel_ridge", "recorded"], settings={})
    assert job.result is not None
    assert (job.result["regressor"], recorded.begun) == ("voxel_ridge", 2)
    assert "recorded could not be made" in {w["code"]: w["text"] for w in job.result["warnings"]}["not-tried"]
    monkeypatch.setattr(recorded, "begun", 0)
    named = school.train(regressor="recorded")
    assert named.error is not None
    assert (named.state, named.error["code"]) == (JobState.FAILED, "invalid-shape")


def test_with_few_patients_auto_trains_no_encoder_unasked(school: School) -> None:
    result = school.train(regressor="auto", settings={}).result
    assert result is not None
    assert not {each["regressor"] for each in result["compared"]} & {"cpic", "random_voxels"}
    assert "not-tried" in [warning["code"] for warning in result["warnings"]]


def test_a_choice_says_what_it_was_among(
    school: School, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(rows: Rows, **parameters: Any) -> list[str]:
        result = school.train(rows, **parameters).result
        assert result is not None
        assert result["regressor"] == "constant"
        return [warning["code"] for warning in result["warnings"]]

    dull = [{**row, "target": float(i % 2)} for i, row in enumerate(bare(school.rows))]
    auto: dict[str, Any] = {"regressor": "auto", "settings": {}}
    assert told(dull, **auto, candidates=["voxel_ridge"]) == ["scans-tell-nothing", "chosen-by-these-figures"]
    assert told(school.rows, **auto, candidates=["tabular"]) == ["chosen-by-these-figures"]
    assert told(dull, **auto, candidates=[]) == []
    assert told(dull, regressor="constant", settings={}) == []
    monkeypatch.setattr(recorded, "fails_at", 0)
    monkeypatch.setattr(recorded, "failure", InvalidShape("scans are too small"))
    assert told(dull, **auto, candidates=["recorded"]) == ["not-tried"]


def test_a_scan_that_proves_corrupt_is_closed(tmp_path: Path) -> None:
    school = School.of(tmp_path, 6)
    record = school.catalogue.volume(school.rows[2]["volume_id"])
    assert record.store is not None
    for shard in (path for path in (tmp_path / record.store / "0" / "c").rglob("*") if path.is_file()):
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 4
        shard.write_bytes(content)
    ended = school.train()
    assert ended.error is not None
    assert (ended.state, ended.error["code"]) == (JobState.FAILED, "corrupt-volume")
    assert ended.error["volume_id"] == record.id
    states = [school.catalogue.volume(row["volume_id"]).state for row in school.rows]
    assert states.count(VolumeState.QUARANTINED) == 1
    again = school.train()
    assert again.error is not None
    assert (again.error["code"], again.error["problems"][0][0]) == ("invalid-cohort", "/rows/2/volume_id")
    school.catalogue.close()


# What is refused, before any scan is opened


def table(school: School, rows: Rows, task: str = "mean", classes: tuple[str, ...] = ()) -> Table:
    return training_table([Row(**row) for row in rows], task, classes, school.catalogue.volume)


def changed(rows: Rows, number: int, **values: Any) -> Rows:
    return [{**row, **values} if i == number else row for i, row in enumerate(rows)]


MISSING = "vol_0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000"


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        (
            lambda rows: changed(rows, 3, volume_id=MISSING),
            "/rows/3/volume_id",
            f"no volume '{MISSING}'; send the scan first",
        ),
        (lambda rows: changed(rows, 4, target="high"), "/rows/4/target", "'high' is no number; for names"),
        (
            lambda rows: changed(rows, 2, covariates={"age": 50.0}),
            "/rows/2/covariates/sex",
            "missing; every row needs it",
        ),
        (
            lambda rows: changed(rows, 1, covariates={**rows[1]["covariates"], "a/b~c": 1.0}),
            "/rows/0/covariates/a~1b~0c",
            "missing",
        ),
        (lambda rows: [*rows, rows[5]], "/rows/14", "the same scan and covariates as in row 5"),
        (
            lambda rows: [*rows, {**rows[5], "covariates": {"age": 1.0, "sex": 0.0}, "patient": "x"}],
            "/rows/14/patient",
            "the same scan as in row 5, which is of patient 'patient-5'",
        ),
        (
            lambda rows: changed(
                [{**row, "fold": i % 2} for i, row in enumerate(rows)], 3, patient="patient-2"
            ),
            "/rows/3/fold",
            "patient 'patient-2' is in fold 0 and in fold 1; give all rows of a patient one fold",
        ),
        (lambda rows: changed(rows, 0, fold=1), "/rows/1/fold", "give all rows a fold, or none"),
        (lambda rows: [{**row, "fold": 3} for row in rows], "/rows", "two folds are needed"),
        (lambda rows: rows[:5], "/rows", "5 patients; a model needs at least 6"),
        (lambda rows: [{**row, "target": 2.5} for row in rows], "/rows", "all targets are 2.5"),
        (lambda rows: changed(rows, 6, target=1e101), "/rows/6/target", "1e+101 is beyond 1e+100"),
        (
            lambda rows: changed(rows, 7, covariates={"age": -1e300, "sex": 0.0}),
            "/rows/7/covariates/age",
            "-1e+300 is beyond 1e+100, the largest number that is taken; use another unit",
        ),
        (
            lambda rows: [{**row, "covariates": {f"c{i}": 1.0}} for i, row in enumerate(rows)],
            "/rows/0/covariates/c1",
            "missing here and in 12 other rows; every row needs it",
        ),
    ],
)
def test_rows_that_nothing_can_be_learnt_from(
    change: Callable[[Rows], Rows], pointer: str, words: str, school: School
) -> None:
    with pytest.raises(InvalidCohort) as refusal:
        table(school, change(school.rows))
    assert pointer in [where for where, _ in refusal.value.problems]
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("task", "classes", "pointer", "words"),
    [
        ("mean", ("a", "b"), "/classes", "the task is mean"),
        ("classes", ("a",), "/classes", "two at least"),
        ("classes", ("a", "a"), "/classes", "each once"),
        ("classes", ("a", "b"), "/rows/13/target", "'c' is none of the classes a, b"),
        ("classes", (), "/rows", "class 'c' has 1 patients; it needs two"),
    ],
)
def test_classes_that_do_not_fit(
    task: str, classes: tuple[str, ...], pointer: str, words: str, school: School
) -> None:
    rows = [{**row, "target": "ab"[number % 2]} for number, row in enumerate(school.rows)]
    with pytest.raises(InvalidCohort) as refusal:
        table(school, changed(rows, 13, target="c"), task, classes)
    assert pointer in [where for where, _ in refusal.value.problems]
    assert words in str(refusal.value)


def test_a_class_must_be_in_two_of_the_tables_own_folds(school: School) -> None:
    rows = [{**row, "target": "ab"[i // 7], "fold": i // 7} for i, row in enumerate(school.rows)]
    with pytest.raises(InvalidCohort) as refusal:
        table(school, rows, "classes")
    assert str(refusal.value) == "; ".join(
        f"/rows: class '{name}' is in fold {fold} alone, and unknown to all other folds; give rows of it to "
        "two folds, or leave it out"
        for name, fold in (("a", 0), ("b", 1))
    )
    assert len(table(school, [{**row, "fold": i % 2} for i, row in enumerate(rows)], "classes")) == 14


def test_a_column_of_numbers_is_no_column_of_classes(school: School) -> None:
    rows = [
        {**school.rows[i % 14], "target": i / 7, "covariates": {"visit": float(i)}}
        for i in range(MOST_CLASSES + 1)
    ]
    with pytest.raises(
        InvalidCohort, match=r"^/rows: target has 101 different values, and 100 classes are the"
    ):
        table(school, rows, "classes")
    assert len(table(school, rows)) == MOST_CLASSES + 1


def test_the_same_voxels_are_one_scan_whatever_they_are_called(school: School) -> None:
    first, second = (school.ingested(organ(0.3, 90)) for _ in range(2))
    rows = [*school.rows, {**school.rows[0], "volume_id": first, "patient": "new"}]
    twin = {**rows[14], "volume_id": second}
    for row, told in (
        (
            {**twin, "patient": "x"},
            "/rows/15/patient: the same voxels as in row 14, which is of patient 'new'",
        ),
        (twin, "/rows/15: the same voxels and covariates as in row 14"),
    ):
        with pytest.raises(InvalidCohort) as refusal:
            table(school, [*rows, row])
        assert str(refusal.value) == told
    assert len(table(school, [*rows, {**twin, "covariates": {"age": 99.0, "sex": 0.0}}])) == 16


def test_a_patient_has_one_spelling() -> None:
    spellings = ("M\u00fcller", "Mu\u0308ller", " M\u00fcller\t")
    assert {Row(volume_id="v", patient=name, target=1.0).patient for name in spellings} == {"M\u00fcller"}
    with pytest.raises(InvalidParameters) as refusal:
        Train().parse({"rows": [{"volume_id": "v", "patient": " \u2003", "target": 1.0}]})
    assert refusal.value.problems == [("/rows/0/patient", "Value error, must not be blank")]


@pytest.mark.parametrize(
    ("part", "pointer"),
    [
        ({"covariates": {f"c{i}": 1.0 for i in range(MOST_COVARIATES + 1)}}, "/rows/0/covariates"),
        ({"fold": 10**30}, "/rows/0/fold"),
        ({"target": "x" * 201}, "/rows/0/target/constrained-str"),
    ],
)
def test_a_row_has_limits(part: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidParameters) as refusal:
        Train().parse({"rows": [{"volume_id": "v", "patient": "p", "target": 1.0, **part}]})
    assert pointer in [where for where, _ in refusal.value.problems]


def test_a_name_of_its_own_in_every_row_makes_no_square_of_problems(school: School) -> None:
    rows = [{**school.rows[0], "target": float(i), "covariates": {f"c{i:04}": 1.0}} for i in range(2000)]
    tracemalloc.start()
    with pytest.raises(InvalidCohort) as refusal:
        table(school, rows)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20
    assert refusal.value.problems[0] == (
        "/rows/1/covariates/c0000",
        "missing here and in 1,998 other rows; every row needs it",
    )
    assert str(refusal.value).endswith("and 1,981 more")


def test_all_that_is_wrong_is_told_at_once(school: School) -> None:
    rows = changed(changed(school.rows, 7, volume_id=MISSING), 2, target="x")
    rows[9] = without(rows[9], "covariates")
    job = school.train([*rows, rows[0]])
    assert job.error is not None
    assert (job.state, job.error["code"], job.error["retryable"]) == (
        JobState.FAILED,
        "invalid-cohort",
        False,
    )
    assert [where for where, _ in job.error["problems"]] == [
        "/rows/7/volume_id",
        "/rows/14",
        "/rows/2/target",
        "/rows/9/covariates/age",
        "/rows/9/covariates/sex",
    ]
    assert files_below(school.root / "checkpoints") == []


def test_scans_that_are_still_read_are_waited_for_and_refused_ones_are_named(tmp_path: Path) -> None:
    school = School.of(tmp_path, 6)
    record, ingest = upload(school.catalogue, tmp_path, organ(0.5, 77))
    rejected, doomed = upload(school.catalogue, tmp_path, organ(0.5, 78)[:900])
    late = {**school.rows[0], "volume_id": record.id, "patient": "late"}
    school.runner.run(doomed.id)
    with pytest.raises(CohortNotReady, match="/rows/6/volume_id"):
        table(school, [*school.rows, late])
    with pytest.raises(InvalidCohort, match="is rejected: ") as refusal:
        table(school, [*school.rows, late, {**late, "volume_id": rejected.id, "patient": "bad"}])
    assert [where for where, _ in refusal.value.problems] == ["/rows/7/volume_id"]
    waiting = school.train([*school.rows, late])
    assert waiting.state is JobState.QUEUED
    school.runner.run(ingest.id)
    ended = school.runner.run(waiting.id)
    assert ended is not None
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    school.catalogue.close()


def test_scans_of_other_numbers_of_channels(school: School) -> None:
    record = school.catalogue.volume(school.rows[3]["volume_id"])
    assert record.stored is not None
    odd = replace(record, stored=replace(record.stored, array_shape=(2, *record.stored.array_shape)))
    rows = [Row(**row) for row in school.rows]
    with pytest.raises(
        InvalidCohort, match="/rows/3/volume_id: 2 values per voxel, most of the others have 1"
    ):
        training_table(
            rows, "mean", (), lambda id_: odd if id_ == record.id else school.catalogue.volume(id_)
        )


@pytest.mark.parametrize(
    ("parameters", "pointers"),
    [
        ({"regressor": "oracle"}, ["/regressor"]),
        ({"settings": {"grid": 3, "colour": "red"}}, ["/settings/colour"]),
        ({"settings": {"grid": "three"}}, ["/settings/grid"]),
        (
            {"regressor": "auto", "candidates": ["oracle"], "settings": {"seer": {}}},
            ["/candidates", "/settings"],
        ),
        ({"regressor": "auto", "settings": {"voxel_ridge": {"grid": 0}}}, ["/settings/voxel_ridge/grid"]),
        ({"regressor": "auto", "settings": {"grid": 3, "cpic": 5}}, ["/settings", "/settings/cpic"]),
        ({"regressor": "cpic", "settings": {"mode": "Paper"}}, ["/settings/mode"]),
        (
            {"regressor": "cpic", "settings": {"readout": {"fibres": {"rnak": 3}}}},
            ["/settings/readout/fibres/rnak"],
        ),
        ({"preparation": {"grid": "round"}}, ["/preparation/grid"]),
        ({"preparation": {"shape": [0, 1, 2]}}, ["/preparation/shape"]),
        ({"folds": 15}, ["/folds"]),
        ({"folds": 1}, ["/folds"]),
        ({"seed": -1, "target_name": ""}, ["/seed", "/target_name"]),
        ({"colour": "red"}, ["/colour"]),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], pointers: list[str], school: School) -> None:
    job = school.train(**parameters)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "invalid-parameters")
    assert [where for where, _ in job.error["problems"]] == pointers


def test_settings_for_auto_are_asked_for_as_tables(school: School) -> None:
    job = school.train(regressor="auto", settings={"grid": 3, "cpic": 5})
    assert job.error is not None
    assert job.error["detail"].count('by the regressor\'s name, as {"voxel_ridge": {"grid": 8}}') == 2


def test_settings_are_published_with_their_defaults() -> None:
    """What the kind shows as an example is taken, and changes nothing."""
    parts = Train().announcement().parameters_schema["properties"]
    (settings,), (preparation,) = (parts[name]["examples"] for name in ("settings", "preparation"))
    assert settings.keys() == REGRESSORS.keys()
    assert settings["voxel_ridge"] == {"grid": 12}
    for name, regressor in REGRESSORS.items():
        assert regressor.from_settings(settings[name]) == regressor.from_settings({})
    assert PreparationConfig.from_json(preparation) == PreparationConfig()
    for word in ("pad", "resample", "robust", "fixed", "canonical"):
        assert word in parts["preparation"]["description"]
    asked = {"rows": [{"volume_id": "v", "patient": "p", "target": 1.0}], "settings": settings}
    assert len(recipes_of(Train().parse({**asked, "candidates": list(REGRESSORS)}))) > 5


def test_tabular_needs_covariates(school: School) -> None:
    parse = Train().parse
    assert list(recipes_of(parse({"rows": school.rows, "regressor": "voxel_ridge"}))) == [
        "constant",
        "tabular",
        "voxel_ridge",
    ]
    assert "tabular" not in recipes_of(parse({"rows": bare(school.rows)}))
    job = school.train(bare(school.rows), regressor="tabular", settings={})
    assert job.error is not None
    assert job.error["code"] == "invalid-parameters"
    with pytest.raises(InvalidParameters):
        parse({"rows": []})


def test_a_cohort_of_two_kinds_is_marked() -> None:
    class Blank:
        shape, channels = (8, 8, 8), 1

    def raw(**facts: Any) -> RawScan:
        from models.intensities import IntensityStatistics

        return RawScan(Blank(), IntensityStatistics(0, 1, 0.5, 0.1), **facts)  # type: ignore[arg-type]

    scans = [raw(spacing=(1, 1, 1), modality="CT"), raw(spacing=(1, 1, 2), modality="MR")]
    told = mixed(Preparation.fit(PreparationConfig(), scans))
    assert [caveat.code for caveat in told] == ["modalities-mixed", "spacing-mixed"]
    assert mixed(Preparation.fit(PreparationConfig(), scans[:1])) == []


def test_a_training_that_is_cancelled_stops_and_leaves_nothing(
    school: School, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = school.catalogue.submit("train", {"rows": school.rows, "regressor": "recorded"})
    saved = Checkpoints.save

    def cancel(self: Checkpoints, *args: Any) -> None:
        saved(self, *args)
        school.catalogue.request_cancel(job.id)

    monkeypatch.setattr(Checkpoints, "save", cancel)
    ended = school.runner.run(job.id)
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    assert files_below(school.root / "checkpoints") == []
    assert not (school.root / "artifacts" / job.id).exists()
