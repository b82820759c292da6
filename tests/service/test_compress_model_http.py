"""`compress-model` over HTTP: published, refused with pointers, and done by a worker."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from house import House
from PIL import Image
from problem_checks import assert_problem
from support.cohorts import organ

from storage.jobs import Job
from workers.jobs import KINDS
from workers.runner import Runner
from workers.settings import WorkerSettings

TRAINING = {
    "regressor": "resnet3d",
    "settings": {"width": 2, "depth": 10, "training": {"epochs": 1, "batch": 3}},
    "folds": 2,
}
SHAPE = (16, 16, 12)


@dataclass(frozen=True)
class Practice:
    """A service and a worker that is run by hand, and a cohort that has been read."""

    house: House
    runner: Runner
    rows: list[dict[str, Any]]

    def submit(self, kind: str, **parameters: Any) -> httpx.Response:
        body = {"kind": kind, "parameters": {"rows": self.rows, **parameters}}
        return self.house.http.post("/v1/jobs", json=body)

    def done(self, kind: str, **parameters: Any) -> Job:
        answer = self.submit(kind, **parameters)
        assert answer.status_code == 202, answer.text
        ended = self.runner.run(answer.json()["id"])
        assert ended is not None
        return ended


@pytest.fixture
def practice(house: House) -> Practice:
    settings = WorkerSettings(data_root=house.root, device="cpu", memory_budget_bytes=2 << 30)
    house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
    runner = Runner(house.catalogue, KINDS, settings, worker="worker", device="cpu")
    rows = [
        {
            "volume_id": house.ready(organ(number / 5, number, SHAPE)),
            "patient": f"p{number}",
            "target": number / 5,
        }
        for number in range(6)
    ]
    return Practice(house, runner, rows)


def test_a_model_is_compressed_and_fetched(practice: Practice) -> None:
    trained = practice.done("train", **TRAINING)
    job = practice.done("compress-model", model=trained.id, method="svdp", share=0.3)
    http = practice.house.http
    result = http.get(f"/v1/jobs/{job.id}/result").json()
    assert result["pcr"] > 1
    assert result["lineage"][0]["job"] == trained.id
    picture = http.get(f"/v1/jobs/{job.id}/artifacts/agreement.png")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    model = http.get(f"/v1/jobs/{job.id}/artifacts/model.safetensors")
    assert len(model.content) == result["bytes"]["after"]
    unmet = practice.done("compress-model", model=trained.id, pcr=1e5)
    answer = http.get(f"/v1/jobs/{unmet.id}/result")
    assert_problem(answer, 409, "job-failed")
    cause = answer.json()["cause"]
    assert (cause["status"], cause["code"]) == (422, "invalid-parameters")
    assert cause["errors"][0]["pointer"] == "/parameters/pcr"
    assert "the most found" in cause["errors"][0]["detail"]


def test_parameters_without_sense_are_refused_at_once(house: House) -> None:
    house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
    row = {"volume_id": "vol_1", "patient": "p", "target": 1}
    for asked, pointer in [
        ({"method": "cp"}, "/parameters/method"),
        ({"pcr": 0.5}, "/parameters/pcr"),
        ({"eps": 2}, "/parameters/eps"),
        ({"epochs": -1}, "/parameters/epochs"),
        ({"rank": 1.5}, "/parameters/rank"),
        ({"judged_share": 0}, "/parameters/judged_share"),
        ({"execution": "fast"}, "/parameters/execution"),
        ({"rows": []}, "/parameters/rows"),
    ]:
        parameters = {"model": "job_1", "rows": [row], **asked}
        answer = house.http.post("/v1/jobs", json={"kind": "compress-model", "parameters": parameters})
        assert_problem(answer, 422, "invalid-parameters")
        assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]


def test_the_kind_is_published_with_its_choices(house: House) -> None:
    house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
    kinds = {kind["name"]: kind for kind in house.http.get("/v1/kinds").json()["kinds"]}
    kind = kinds["compress-model"]
    properties = kind["parameters_schema"]["properties"]
    assert properties["method"]["enum"] == ["ring", "svdp", "sttp"]
    assert set(kind["parameters_schema"]["required"]) == {"model", "rows"}
    assert all(each.get("description") for each in properties.values())
    assert kind["needs_volume"] is False
    assert "compress-model" in kinds["predict"]["parameters_schema"]["properties"]["model"]["description"]
