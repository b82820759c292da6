"""`compress-model` through the runner: a smaller model that is asked like its parent, and what it changes."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from support.cohorts import School, bare, organ

from models.compression.plans import CompressionPlan
from models.learning.preparation import Preparation
from storage.artifacts import read_tensors
from storage.errors import JobCancelled, StorageFull, UnusableModel
from storage.jobs import Job, JobState, Progress
from storage.tensors import packed
from workers.compressing import PLANNING
from workers.jobs import KINDS
from workers.lease import Lease
from workers.models import NOTICE, TrainedModel
from workers.packages import versions
from workers.runner import Runner
from workers.settings import WorkerSettings

NETWORK: dict[str, Any] = {
    "regressor": "resnet3d",
    "settings": {"width": 3, "depth": 10, "training": {"epochs": 1, "batch": 4}},
    "folds": 2,
    "target_name": "ripeness",
    "target_unit": "%",
}
CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"method": "svdp", "share": 0.2}
"""What is planned at once."""


@pytest.fixture(scope="module")
def model(school: School) -> Job:
    job = school.train(bare(school.rows[:6]), **NETWORK)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


@pytest.fixture(scope="module")
def others(school: School) -> list[dict[str, Any]]:
    """Six patients that are new; the first has two scans."""
    targets = (0.1, 0.3, 0.4, 0.6, 0.8, 0.9, 0.2)
    return [
        {
            "volume_id": school.ingested(organ(target, 70 + number)),
            "patient": f"new-{number % 6}",
            "target": target,
        }
        for number, target in enumerate(targets)
    ]


def compress(school: School, model: Job, rows: list[dict[str, Any]], **asked: Any) -> Job:
    return school.run("compress-model", {"model": model.id, "rows": rows, **asked})


@pytest.fixture(scope="module")
def ringed(school: School, model: Job, others: list[dict[str, Any]]) -> Job:
    """By tensor rings; all rows recalibrate, and all judge."""
    return compress(school, model, others, eps=0.7)


def told(job: Job) -> dict[str, Any]:
    assert job.result is not None, job.error
    return job.result


def lines_of(school: School, job: Job) -> list[dict[str, str]]:
    with school.artifact(job, "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(lines: list[dict[str, str]], name: str) -> np.ndarray[Any, Any]:
    return np.array([float(line[name]) for line in lines])


def record_of(school: School, job: Job) -> dict[str, Any]:
    return read_tensors(school.artifact(job, "model.safetensors"))[1]


def codes(job: Job) -> list[str]:
    return [each["code"] for each in told(job)["warnings"]]


def test_what_it_saves_and_what_it_changes(
    school: School, model: Job, others: list[dict[str, Any]], ringed: Job
) -> None:
    result = told(ringed)
    jsonschema.validate(result, school.catalogue.kind("compress-model").result_schema)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["notice"] == NOTICE
    files = {file.name: file for file in ringed.artifacts}
    assert list(files) == [
        "model.safetensors",
        "plan.json",
        "report.json",
        "predictions.csv",
        "agreement.png",
    ]
    assert result["model_digest"] == files["model.safetensors"].sha256
    assert result["bytes"] == {"before": model.artifacts[0].size, "after": files["model.safetensors"].size}
    plan = CompressionPlan.from_json(school.artifact(ringed, "plan.json").read_text())
    assert result["parameters"] == {"before": plan.parameters, "after": plan.parameters_after}
    assert result["pcr"] == plan.pcr > 1.2
    assert result["fcr"] == plan.macs / plan.macs_after
    assert result["fcr_executed"] == plan.macs / plan.macs_executed
    assert 0 < result["largest_layer_error"] == max(layer.error for layer in plan.layers)
    assert result["layers_changed"] == len(plan.forms) > 0
    assert result["layers_changed"] + result["layers_left"] == len(plan.layers)
    assert all(0 < each["p50_s"] <= each["p95_s"] for each in result["latency"].values())
    lines = lines_of(school, ringed)
    before, after, targets = (numbers(lines, name) for name in ("before", "after", "target"))
    assert targets.tolist() == [row["target"] for row in others]
    change = after - before
    assert np.array_equal(numbers(lines, "difference"), change)
    agreement = result["agreement"]
    assert agreement["largest_change"] == np.abs(change).max() > 0
    assert agreement["mean"] == pytest.approx(change.mean(), rel=1e-12)
    spread = 1.96 * change.std(ddof=1)
    assert (agreement["lower"], agreement["upper"]) == pytest.approx(
        (change.mean() - spread, change.mean() + spread)
    )
    rmse = result["metrics"]["rmse"]
    errors = [np.sqrt(np.square(each - targets).mean()) for each in (before, after)]
    assert [rmse["before"]["value"], rmse["after"]["value"]] == pytest.approx(errors, rel=1e-12)
    assert rmse["difference"]["value"] == pytest.approx(errors[1] - errors[0], rel=1e-9)
    assert rmse["difference"]["low"] <= rmse["difference"]["value"] <= rmse["difference"]["high"]
    widths = [rmse[name]["high"] - rmse[name]["low"] for name in ("before", "difference")]
    assert widths[1] < widths[0], "a paired difference is known better than either metric"
    with Image.open(io.BytesIO(school.artifact(ringed, "agreement.png").read_bytes())) as picture:
        assert picture.format == "PNG"
    report = json.loads(school.artifact(ringed, "report.json").read_text())
    assert {layer["left_because"] for layer in report["layers"]} >= {"", "stem", "head", "1x1"}
    assert report["judged_rows"] == list(range(7))


def test_intervals_are_the_parents_widened_by_the_largest_change(model: Job, ringed: Job) -> None:
    result, parent = told(ringed), told(model)
    largest = result["agreement"]["largest_change"]
    wider = [
        None if each["threshold"] is None else each["threshold"] + largest for each in parent["intervals"]
    ]
    assert [each["threshold"] for each in result["intervals"]] == wider
    assert result["guarantee"].startswith(parent["guarantee"])
    assert result["guarantee"].endswith("6 patients who had a part in making it: about 0.14 less")
    assert codes(ringed) == ["judged-recalibrated"]
    counts = {"rows": 7, "scans": 7, "patients": 6}
    assert (result["made_on"], result["judged_on"], result["judged_rows"]) == (counts, counts, None)


def test_where_it_came_from(school: School, model: Job, ringed: Job) -> None:
    (ancestor,) = told(ringed)["lineage"]
    file = model.artifacts[0]
    assert ancestor == {"job": model.id, "kind": "train", "model_digest": file.sha256, "bytes": file.size}
    assert told(ringed)["parent_digest"] == file.sha256
    parent, record = record_of(school, model), record_of(school, ringed)
    assert "lineage" not in parent
    (step,) = record["lineage"]
    assert step["parent"] == file.sha256
    assert step["settings"] == {
        "method": "ring",
        "eps": 0.7,
        "execution": "auto",
        "measure": "answers",
        "epochs": 0,
        "seed": 0,
    }
    assert step["plan"] == next(file.sha256 for file in ringed.artifacts if file.name == "plan.json")
    assert step["labels"] is False
    assert len(step["made_on"]["volumes"]) == 7
    assert step["made_on"]["packages"] == versions()
    same = ("training", "preparation", "settings", "task", "regressor", "covariates", "target")
    assert {name: record[name] for name in same} == {name: parent[name] for name in same}
    assert record["scores"] == [], "the parent's figures out of fold are not this model's"
    text = school.artifact(ringed, "model.safetensors").read_bytes()
    for name in (model.id, ringed.id, "new-3"):
        assert name.encode() not in text


@pytest.mark.parametrize(
    "asked",
    [
        {"bytes": 100_000, "pcr": 1.1},
        {"method": "svdp", "rank": 2},
        {"method": "sttp", "rank": 2},
        {"pcr": 1.5, "measure": "kernels"},
        {"max_drop": 0.5},
        {**QUICK, "epochs": 1, "rate": 1e-3, "seed": 3},
    ],
    ids=lambda asked: next(
        name for name in ("epochs", "max_drop", "method", "bytes", "measure") if name in asked
    ),
)
def test_each_target_gives_a_model_that_predicts_as_was_told(
    asked: dict[str, Any], school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    job = compress(school, model, others, **asked)
    result, lines = told(job), lines_of(school, job)
    assert result["pcr"] > 1.1
    assert result["goal"] == {name: asked[name] for name in asked if name in result["goal"]} != {}
    line = lines[-1]
    predicted = school.run("predict", {"model": job.id}, line["volume_id"])
    assert told(predicted)["value"] == float(line["after"])
    assert told(predicted)["model_digest"] == result["model_digest"]
    assert told(predicted)["guarantee"] == result["guarantee"]
    if "bytes" in asked:
        plan = CompressionPlan.from_json(school.artifact(job, "plan.json").read_text())
        assert plan.bytes_after <= asked["bytes"] < plan.bytes
    if "epochs" not in asked and "max_drop" not in asked:
        assert (len(lines), result["judged_rows"]) == (7, None)
        return
    made = record_of(school, job)["lineage"][0]
    assert made["labels"] is True
    judging = {others[row]["patient"] for row in result["judged_rows"]}
    assert [int(line["row"]) for line in lines] == result["judged_rows"]
    assert all((row["patient"] in judging) == (n in result["judged_rows"]) for n, row in enumerate(others))
    assert result["made_on"]["patients"] + result["judged_on"]["patients"] == 6
    assert result["judged_on"]["patients"] == 2
    assert result["guarantee"].endswith("on 2 patients: at most 0.33 less")
    assert "judged-recalibrated" not in codes(job)


def test_targets_that_do_not_judge_change_nothing(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    """Without epochs and drops no target has a part in the model; scans have, unless they are kept apart."""

    def tensors(rows: list[dict[str, Any]], **asked: Any) -> dict[str, Any]:
        job = compress(school, model, rows, **{**QUICK, **asked})
        return read_tensors(school.artifact(job, "model.safetensors"))[0]

    one = tensors(others)
    other = tensors([{**row, "target": 1 - row["target"]} for row in others])
    assert all(np.array_equal(one[name], other[name]) for name in one)
    apart = tensors(others, judged_share=0.5)
    assert any(not np.array_equal(one[name], apart[name]) for name in one)


def test_same_input_same_bytes_and_another_seed_another_model(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    asked = {**QUICK, "epochs": 1}
    digests = [
        told(compress(school, model, others, **asked, seed=seed))["model_digest"] for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_compressed_model_is_a_model_everywhere(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    """Evaluated, and compressed again; what it was tuned on is never forgotten."""
    tuned = compress(school, model, others, **QUICK, epochs=1)
    twice = compress(school, tuned, bare(school.rows[6:10]), eps=0.9)
    lineage = told(twice)["lineage"]
    assert [(each["job"], each["kind"]) for each in lineage] == [
        (model.id, "train"),
        (tuned.id, "compress-model"),
    ]
    digests = [each["parent"] for each in record_of(school, twice)["lineage"]]
    assert digests == [told(model)["model_digest"], told(tuned)["model_digest"]]
    assert told(twice)["guarantee"].count("widened by") == 2
    assert "nothing-smaller" in codes(twice), "what is factorised is left as it is"
    assert told(twice)["pcr"] == 1
    judged = told(tuned)["judged_rows"]
    learnt = next(row for number, row in enumerate(others) if number not in judged)
    fresh = others[judged[0]]
    for job in (tuned, twice):
        warned = school.run("evaluate", {"model": job.id, "rows": [learnt, fresh, *bare(school.rows[:1])]})
        texts = {each["code"]: each["text"] for each in told(warned)["warnings"]}
        assert texts["patient-seen"].startswith("2 patients were learnt from")
        assert texts["scan-seen"].startswith("2 scans were learnt from")
        assert told(warned)["model_digest"] == told(job)["model_digest"]


def test_patients_that_the_parent_has_learnt_from_judge_with_a_warning(school: School, model: Job) -> None:
    job = compress(school, model, bare(school.rows[:8]), **QUICK, judged_share=0.5)
    assert {"patient-seen", "scan-seen"} <= set(codes(job))
    assert told(job)["guarantee"].endswith("on 4 patients who had a part in making it: about 0.2 less")


def test_classes_are_compared_by_probabilities(school: School, others: list[dict[str, Any]]) -> None:
    def named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "target": "ill" if row["target"] > 0.5 else "well"} for row in rows]

    parent = school.train(named(bare(school.rows[:6])), **{**NETWORK, "task": "classes"})
    job = compress(school, parent, named(others), **QUICK)
    result, lines = told(job), lines_of(school, job)
    assert set(result["metrics"]) == {"log_loss", "accuracy", "auc"}
    before, after = (
        np.stack([numbers(lines, f"{when} probability of {name}") for name in ("ill", "well")], axis=1)
        for when in ("before", "after")
    )
    assert np.allclose(after.sum(axis=1), 1)
    assert result["agreement"]["largest_change"] == np.abs(after - before).max()
    assert result["agreement"]["other_classes"] == (before.argmax(axis=1) != after.argmax(axis=1)).sum()
    best = before.argmax(axis=1)
    moved = (after - before)[np.arange(7), best]
    assert result["agreement"]["mean"] == pytest.approx(moved.mean())
    assert result["agreement"]["of"].startswith("probability")


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({}, ["/eps"]),
        ({"method": "sttp"}, ["/rank"]),
        ({"eps": 0.5, "pcr": 2.0, "macs": 5}, ["/pcr", "/macs"]),
        ({"bytes": 5, "max_drop": 2.0}, ["/max_drop"]),
        ({"method": "svdp", "pcr": 2.0}, ["/pcr"]),
        ({"method": "svdp", "rank": 2, "share": 0.5}, ["/share"]),
        ({"eps": 0.5, "rank": 2}, ["/rank"]),
        ({"method": "sttp", "rank": 2, "execution": "fewest"}, ["/execution"]),
        ({"macs": 10**9, "execution": "rebuild"}, ["/execution"]),
        ({"eps": 0.5, "rate": 0.1}, ["/rate"]),
        ({"method": "svdp", "rank": 2, "measure": "kernels"}, ["/measure"]),
        ({"method": "tucker", "eps": 0.5}, ["/method"]),
        ({"eps": 1.0}, ["/eps"]),
        ({"pcr": 0.5, "epochs": -1}, ["/pcr", "/epochs"]),
        ({"eps": 0.5, "judged_share": 1.0}, ["/judged_share"]),
        ({"eps": 0.5, "ranks": 3}, ["/ranks"]),
        ({"pcr": 1e5}, ["/pcr"]),
        ({"macs": 10}, ["/macs"]),
        ({"bytes": 10}, ["/bytes"]),
    ],
)
def test_targets_that_cannot_be_are_refused_by_name(
    asked: dict[str, Any], where: list[str], school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    job = compress(school, model, others, **asked)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "invalid-parameters")
    assert [pointer for pointer, _ in job.error["problems"]] == where
    if asked in ({"pcr": 1e5}, {"macs": 10}, {"bytes": 10}):
        assert "found" in job.error["detail"], "it says what can be met"
    assert job.artifacts == ()


def test_a_drop_that_cannot_be_kept_says_which_can(
    school: School, model: Job, others: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = iter(range(100))
    monkeypatch.setattr("workers.compressing._Score.__call__", lambda *_: -float(next(worse)))
    job = compress(school, model, others, max_drop=0.25)
    assert job.error is not None
    assert job.error["code"] == "invalid-parameters"
    assert job.error["problems"][0][0] == "/max_drop"
    assert "at least 1, the drop at eps" in job.error["detail"]


def test_too_few_patients_or_scans_are_refused(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    alone = [others[0], others[6]]
    assert told(compress(school, model, alone, **QUICK))["metrics"]["rmse"]["difference"]["low"] is None
    for more in ({"epochs": 1}, {"judged_share": 0.5}):
        job = compress(school, model, alone, **QUICK, **more)
        assert job.error is not None
        assert job.error["problems"][0][0] == "/rows"
        assert "one patient" in job.error["detail"]
    for rows, more in ((others[:1], {}), (others[:2], {"epochs": 1})):
        job = compress(school, model, rows, **QUICK, **more)
        assert job.error is not None
        assert job.error["problems"][0][0] == "/rows"
        assert "two scans or more" in job.error["detail"]


def test_models_without_a_network_are_refused_with_the_cure(
    school: School, others: list[dict[str, Any]]
) -> None:
    for regressor, settings in (("voxel_ridge", {"grid": 2}), ("constant", {})):
        parent = school.train(bare(school.rows[:6]), regressor=regressor, settings=settings)
        job = compress(school, parent, others, eps=0.5)
        assert job.error is not None
        assert job.error["code"] == "unusable-model"
        for word in (parent.id, regressor, "no network", "as resnet3d"):
            assert word in job.error["detail"]


def test_rows_that_do_not_fit_the_model_are_named(
    school: School, model: Job, others: list[dict[str, Any]]
) -> None:
    rows = [{**others[0], "covariates": {"age": 3.0}}, {**others[1], "target": "much"}]
    job = compress(school, model, rows, **QUICK)
    assert job.error is not None
    assert job.error["code"] == "invalid-cohort"
    assert [where for where, _ in job.error["problems"]] == ["/rows/1/target", "/rows/0/covariates/age"]


def test_a_job_that_would_take_too_much_is_refused_before_it_reads(
    school: School, model: Job, others: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preparation, "apply", None)
    settings = WorkerSettings(
        data_root=school.root, device="cpu", memory_budget_bytes=350 << 20, cache_bytes=16 << 20
    )
    small = Runner(school.catalogue, KINDS, settings, worker="worker-1", device="cpu")
    job = small.run(
        school.catalogue.submit("compress-model", {"model": model.id, "rows": others, **QUICK}).id
    )
    assert job is not None
    assert job.error is not None
    assert (job.error["code"], job.error["allowed"]) == ("over-budget", 350 << 20)
    assert "resnet3d takes" in job.error["detail"]


def test_it_is_cancelled_between_layers_and_leaves_nothing(
    school: School, model: Job, others: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []

    def report(lease: Lease, progress: Progress) -> None:
        heard.append(progress)
        if progress.phase.startswith(PLANNING) and progress.done == 2:
            school.catalogue.request_cancel(job.id)
            raise JobCancelled(job.id)

    monkeypatch.setattr(Lease, "report", report)
    job = school.catalogue.submit("compress-model", {"model": model.id, "rows": others, "eps": 0.7})
    ended = school.runner.run(job.id)
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    assert heard[-1].phase.startswith(PLANNING)
    assert not list((school.root / "artifacts").glob(f"{job.id}/**/*.*"))


def test_an_attempt_goes_on_with_the_plan_of_the_one_before(
    school: School, model: Job, others: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": model.id, "rows": others, **QUICK, "epochs": 2}
    reference = school.run("compress-model", asked)
    phases: list[str] = []
    heartbeat = Lease.report
    fatal = True

    def report(lease: Lease, progress: Progress) -> None:
        phases.append(progress.phase)
        if fatal and (progress.phase, progress.done) == ("judging", 0):
            raise StorageFull("the disk is full")
        heartbeat(lease, progress)

    monkeypatch.setattr(Lease, "report", report)
    job = school.catalogue.submit("compress-model", asked)
    lost = school.runner.run(job.id)
    assert lost is not None
    assert any(phase.startswith(PLANNING) for phase in phases)
    assert lost.state is JobState.QUEUED, lost.error
    phases.clear()
    fatal = False
    ended = school.runner.run(job.id)
    assert ended is not None
    assert told(ended)["model_digest"] == told(reference)["model_digest"]
    assert {phase for phase in phases if phase.startswith(PLANNING)} == set()
    assert {"recalibrating", "training", "judging", "timing"} <= set(phases)


def test_a_lineage_that_is_damaged_makes_the_model_unusable(school: School, ringed: Job, model: Job) -> None:
    tensors, record = read_tensors(school.artifact(ringed, "model.safetensors"))
    sound = TrainedModel.load("job_1", packed(tensors, record), CPU)
    assert sound.lineage[0].parent == told(model)["model_digest"]
    record["lineage"][0]["made_on"] = None
    with pytest.raises(UnusableModel, match=r"lineage.*made_on"):
        TrainedModel.load("job_1", packed(tensors, record), CPU)
