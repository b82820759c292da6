"""`predict` through the runner: an answer for a scan that was not learnt from, and when not to trust it."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from support.cohorts import School, bare, organ

from storage.artifacts import read_tensors
from storage.errors import UnusableModel
from storage.jobs import Job, JobState
from storage.tensors import packed, unpacked
from workers.jobs.predict import verdict
from workers.models import CURE, NOTICE, TrainedModel

COVARIATES = {"age": 50.0, "sex": 1.0}
TRUTH = 0.6
HALVED = {"grid": "resample", "spacing": [4.5, 4, 4]}
"""Of scans of 3 x 2 x 2 mm, (z, y, x)."""


@pytest.fixture(scope="module")
def model(school: School) -> Job:
    return school.train()


@pytest.fixture(scope="module")
def unseen(school: School) -> str:
    return school.ingested(organ(TRUTH, 99))


def predicted(school: School, model: str, volume_id: str, **covariates: float) -> Job:
    asked = {"model": model, "covariates": {**COVARIATES, **covariates}}
    return school.run("predict", asked, volume_id)


@pytest.fixture(scope="module")
def answered(school: School, model: Job, unseen: str) -> Job:
    return predicted(school, model.id, unseen)


def codes(job: Job) -> list[str]:
    assert job.result is not None, job.error
    return [warning["code"] for warning in job.result["warnings"]]


def test_an_answer_with_all_that_stands_behind_it(
    school: School, model: Job, unseen: str, answered: Job
) -> None:
    result = answered.result
    assert result is not None
    jsonschema.validate(result, school.catalogue.kind("predict").result_schema)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["notice"] == NOTICE
    assert result["value"] == pytest.approx(TRUTH, abs=0.15)
    widths = [each["high"] - each["low"] for each in result["intervals"][:2]]
    assert [each["level"] for each in result["intervals"]] == [0.8, 0.9, 0.95]
    assert 0 < widths[0] <= widths[1]
    assert result["intervals"][0]["low"] < TRUTH < result["intervals"][0]["high"]
    assert (result["intervals"][2]["low"], result["intervals"][2]["high"]) == (None, None)
    assert (result["class_name"], result["quantiles"], result["probabilities"]) == (None, [], [])
    assert 0 <= result["distance_percentile"] < 95
    assert result["verdict"].startswith("yes: ")
    assert codes(answered) == []
    assert result["voxels"] == 16 * 24 * 24
    assert result["share_read"] == 1
    assert result["bytes_read"] > 0
    assert model.result is not None
    assert (result["model"], result["model_digest"]) == (model.id, model.result["model_digest"])
    stored = school.catalogue.volume(unseen).stored
    assert stored is not None
    assert result["volume_digest"] == stored.digest


def test_where_the_answer_comes_from(school: School, answered: Job) -> None:
    assert [artifact.name for artifact in answered.artifacts] == ["saliency.json", "saliency.png"]
    told = json.loads(school.artifact(answered, "saliency.json").read_text())
    assert told["notice"] == NOTICE
    assert len(told["centres"]) == len(told["weights"]) == 27
    assert np.all(np.diff(np.abs(told["weights"])) <= 0)
    centres = np.array(told["centres"])
    assert ((centres >= 0) & (centres < (16, 24, 20))).all()
    assert told["cube_sides"] == pytest.approx([16 / 3, 8, 8], abs=1e-3)
    with Image.open(io.BytesIO(school.artifact(answered, "saliency.png").read_bytes())) as picture:
        assert picture.format == "PNG"
        assert picture.width > 900
        assert len(picture.getcolors(1 << 20) or []) > 50


def test_sampled_cubes_are_as_large_as_what_the_encoder_looks_at(school: School, unseen: str) -> None:
    settings = {"steps": 2, "voxels": 8, "readout": {"count": 512}}
    model = school.train(
        bare(school.rows[:6]), regressor="random_voxels", settings=settings, folds=2, preparation=HALVED
    )
    job = school.run("predict", {"model": model.id}, unseen)
    told = json.loads(school.artifact(job, "saliency.json").read_text())
    assert told["cube_sides"] == [9 * 1.5, 9 * 2, 9 * 2]
    assert job.result is not None
    assert len(told["weights"]) == job.result["voxels"]


def test_same_scan_same_answer_and_that_of_the_saved_model(
    school: School, model: Job, unseen: str, answered: Job
) -> None:
    again = predicted(school, model.id, unseen).result
    assert again is not None
    assert answered.result is not None
    volatile = {"seconds", "peak_memory_bytes"}
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in answered.result.items() if k not in volatile
    }


def test_a_scan_that_lies_another_way_has_the_same_answer_and_salient_places_in_its_own_voxels(
    school: School, unseen: str
) -> None:
    model = school.train(preparation={"intensity": "standard"})
    answered = predicted(school, model.id, unseen)
    upright = nibabel.Nifti1Image.from_bytes(gzip.decompress(organ(TRUTH, 99)))
    voxels = np.asarray(upright.dataobj).transpose(1, 2, 0)[:, ::-1]
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 2, -3, 2, 1
    turned = nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine)
    job = predicted(school, model.id, school.ingested(gzip.compress(turned.to_bytes())))
    assert job.result is not None
    assert answered.result is not None
    assert job.result["value"] == pytest.approx(answered.result["value"], abs=1e-9)
    here, there = (json.loads(school.artifact(each, "saliency.json").read_text()) for each in (job, answered))
    z, y, x = np.array(there["centres"]).T
    assert np.allclose(here["centres"], np.stack([x, 15 - z, y], axis=1))
    assert here["weights"] == pytest.approx(there["weights"], rel=1e-5)


def test_covariates_that_are_missing_or_unknown_are_named(school: School, model: Job, unseen: str) -> None:
    asked = {"model": model.id, "covariates": {"sex": 0.0, "weight": 80.0}}
    job = school.run("predict", asked, unseen)
    assert job.error is not None
    assert job.error["code"] == "invalid-parameters"
    (missing, why), (unknown, which) = job.error["problems"]
    assert (missing, unknown) == ("/covariates/age", "/covariates/weight")
    assert "missing; the model learnt from " in why
    assert "the model takes age, sex" in which


def test_what_is_unlike_the_training_is_marked(school: School, model: Job, unseen: str) -> None:
    old = predicted(school, model.id, unseen, age=120)
    assert codes(old) == ["covariate-outside"]
    assert old.result is not None
    assert "age = 120: the training's is from" in old.result["warnings"][0]["text"]
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(organ(TRUTH, 99)))
    coarse = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([9, 2, 3, 1]))
    far = predicted(school, model.id, school.ingested(gzip.compress(coarse.to_bytes())))
    assert codes(far) == ["spacing-far"]
    noise = np.random.default_rng(0).normal(0, 1, (20, 24, 16)).astype(np.float32)
    strange = nibabel.Nifti1Image(noise, np.diag([2, 2, 3, 1]))
    odd = predicted(school, model.id, school.ingested(gzip.compress(strange.to_bytes())))
    assert codes(odd) == ["unlike-training"]
    assert odd.result is not None
    assert odd.result["distance_percentile"] == 100
    assert "do not rely on the answer" in odd.result["verdict"]


def test_verdicts() -> None:
    words = [verdict(percentile) for percentile in (None, 0.0, 40.0, 95.0, 99.0, 100.0)]
    starts = ["not known", "yes: closer", "yes: closer", "hardly", "hardly", "no: farther"]
    assert all(word.startswith(start) for word, start in zip(words, starts, strict=True))


def test_a_scan_with_other_channels_is_refused(school: School, model: Job) -> None:
    twice = np.stack(
        [np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(organ(0, 1))).dataobj)] * 2, -1
    )
    image = nibabel.Nifti1Image(twice, np.diag([2, 2, 3, 1]))
    job = predicted(school, model.id, school.ingested(gzip.compress(image.to_bytes())))
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "invalid-shape")
    assert "2 channels" in job.error["detail"]


def test_quantiles_come_in_order_with_their_levels(school: School, unseen: str) -> None:
    model = school.train(bare(school.rows), task="quantiles", target_name="volume", target_unit="ml")
    job = school.run("predict", {"model": model.id}, unseen)
    assert job.result is not None
    assert [each["level"] for each in job.result["quantiles"]] == [0.2, 0.5, 0.8]
    values = [each["value"] for each in job.result["quantiles"]]
    assert values == sorted(values)
    assert job.result["value"] == values[1]
    assert (job.result["target_name"], job.result["target_unit"]) == ("volume", "ml")
    tensors, manifest = read_tensors(school.artifact(model, "model.safetensors"))
    (offsets,) = (array for name, array in tensors.items() if name.endswith("offsets"))
    moved = offsets + manifest["quantile_shift"]["shifts"]
    assert values[2] - values[0] == pytest.approx(moved[2] - moved[0])
    assert any(manifest["quantile_shift"]["shifts"])


def test_classes_come_with_probabilities_and_sets(school: School, unseen: str) -> None:
    rows = [{**row, "target": "ill" if row["target"] > 0.5 else "well"} for row in bare(school.rows)]
    model = school.train(rows, task="classes")
    result = school.run("predict", {"model": model.id}, unseen).result
    assert result is not None
    assert (result["value"], result["intervals"]) == (None, [])
    by_name = {each["name"]: each for each in result["probabilities"]}
    assert sum(each["value"] for each in by_name.values()) == pytest.approx(1)
    assert result["class_name"] == max(by_name, key=lambda name: by_name[name]["value"])
    assert 0.8 in by_name[result["class_name"]]["sets"]
    assert all(0.95 in each["sets"] for each in by_name.values())  # too few patients: all classes


def test_a_model_that_looks_at_no_scan_has_no_picture(school: School, unseen: str) -> None:
    model = school.train(regressor="constant", settings={})
    job = predicted(school, model.id, unseen)
    assert job.artifacts == ()
    assert job.result is not None
    assert (job.result["distance"], job.result["voxels"]) == (None, 0)
    assert job.result["verdict"].startswith("not known")


# What is no model


def test_a_model_whose_bytes_changed_is_not_used(school: School, unseen: str) -> None:
    model = school.train(regressor="constant", settings={})
    path = school.artifact(model, "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    job = predicted(school, model.id, unseen)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "corrupt-artifact")
    path.unlink()
    gone = predicted(school, model.id, unseen)
    assert gone.error is not None
    assert gone.error["code"] == "artifact-not-found"


def test_only_a_training_that_succeeded_has_a_model(school: School, model: Job, unseen: str) -> None:
    queued = school.catalogue.submit("train", {"rows": school.rows})
    failed = school.train(school.rows[:2])
    for job_id, words in (
        (queued.id, "its job is queued; wait until it has succeeded"),
        (failed.id, "its job is failed; name one that succeeded"),
        (school.catalogue.volume(unseen).ingest_job, "a job of the kind ingest; name one of the kind train"),
    ):
        job = predicted(school, job_id, unseen)
        assert job.error is not None
        assert job.error["code"] == "unusable-model"
        assert words in job.error["detail"]
    unknown = predicted(school, "job_1", unseen)
    assert unknown.error is not None
    assert unknown.error["code"] == "job-not-found"
    school.catalogue.request_cancel(queued.id)


@pytest.fixture(scope="module")
def saved(school: School, model: Job) -> bytes:
    return school.artifact(model, "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 3}, ["schema 3", "reads schema 2", "train it again", "0.1.0"]),
        ({"schema": None}, ["schema None", "train it again"]),
        ({"regressor": "oracle"}, ["'oracle'", "known here, constant", "voxel_ridge"]),
        ({"settings": {"colour": "red"}}, ["colour", "train it again"]),
        ({"model": {"schema": 99}}, ["99", "train it again"]),
    ],
)
def test_a_model_of_another_version_says_so_with_the_cure(
    change: dict[str, Any], words: list[str], saved: bytes
) -> None:
    tensors, manifest = unpacked(saved)
    with pytest.raises(UnusableModel) as refusal:
        TrainedModel.load("job_1", packed(tensors, {**manifest, **change}), torch.device("cpu"))
    for word in ("job_1", *words):
        assert word in str(refusal.value)


RECORD = {
    "": ("schema", "notice", "regressor", "settings", "quantile_shift", "covariates", "scores"),
    "task": ("kind", "classes"),
    "target": ("name", "unit"),
    "training": ("volumes", "table", "patients", "rows", "seed", "packages"),
    "preparation": (
        "config",
        "shape",
        "channels",
        "canonical",
        "spacing",
        "least_spacing",
        "modalities",
        "scale",
    ),
    "conformal": ("task", "method", "patients", "levels"),
    "model": ("schema", "features", "head", "digest"),
}
KEYS = [(part,) for part in RECORD if part] + [
    (*([part] if part else []), name) for part, names in RECORD.items() for name in names
]


def record_without(manifest: dict[str, Any], key: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """A copy, in which the table that `key` is in lacks it, and that table."""
    copied = json.loads(json.dumps(manifest))
    table = copied
    for name in key[:-1]:
        table = table[name]
    del table[key[-1]]
    return copied, table


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_damaged_record_is_no_model_and_the_cure_is_told_once(key: tuple[str, ...], saved: bytes) -> None:
    tensors, manifest = unpacked(saved)
    missing, _ = record_without(manifest, key)
    other, table = record_without(manifest, key)
    value = manifest[key[0]] if len(key) == 1 else manifest[key[0]][key[1]]
    table[key[-1]] = 3.5 if isinstance(value, dict) else {"x": 1}
    for broken in (missing, other):
        with pytest.raises(UnusableModel) as refusal:
            TrainedModel.load("job_1", packed(tensors, broken), torch.device("cpu"))
        assert str(refusal.value).count("train it again") == 1
        assert str(refusal.value).endswith(CURE)


def test_a_record_that_is_no_table_is_no_model(saved: bytes) -> None:
    tensors, manifest = unpacked(saved)
    covariates: list[Any] = [{"name": "age", "least": 1}]
    for broken in ([], "model", {**manifest, "covariates": covariates}, {**manifest, "scores": [1]}):
        with pytest.raises(UnusableModel, match="train it again"):
            TrainedModel.load("job_1", packed(tensors, broken), torch.device("cpu"))  # type: ignore[arg-type]


def test_what_is_no_file_of_a_model(saved: bytes) -> None:
    for content in (b"", b"x" * 100, saved[:-1]):
        with pytest.raises(UnusableModel, match="cannot be read"):
            TrainedModel.load("job_1", content, torch.device("cpu"))


def test_what_is_saved_is_what_is_loaded(saved: bytes, tmp_path: Path) -> None:
    from storage.artifacts import ArtifactWriter

    loaded = TrainedModel.load("job_1", saved, torch.device("cpu"))
    again = replace(loaded).save(ArtifactWriter(tmp_path))
    assert (tmp_path / again.name).read_bytes() == saved
    assert loaded.training.knows("patient-3")
    assert not loaded.training.knows("patient-33")
