"""Jobs on models ask for the memory that their recipes take, and are refused before a voxel is read."""

from __future__ import annotations

from typing import Any

import pytest
from support.cohorts import QUICK, School

from models.learning.preparation import Preparation
from models.regressors.base import Extent
from models.regressors.memory import scan_bytes
from models.regressors.voxel_ridge import VoxelRidge
from storage.jobs import Job, JobState
from workers import models, preparing
from workers.jobs import KINDS
from workers.memory import BASE_BYTES
from workers.runner import Runner
from workers.scans import HeldScan
from workers.settings import WorkerSettings

CACHE = 16 << 20
COHORT = Extent((16, 24, 24), 1, 14, 14, 2)
"""The school's, as it is prepared."""
COVARIATES = {"age": 50.0, "sex": 1.0}


def run(school: School, budget: int, kind: str, asked: dict[str, Any], volume_id: str | None = None) -> Job:
    """A job by a worker of this budget, to its end."""
    settings = WorkerSettings(
        data_root=school.root,
        device="cpu",
        retry_pause_s=0,
        memory_budget_bytes=budget,
        cache_bytes=CACHE,
    )
    runner = Runner(school.catalogue, KINDS, settings, worker="worker-1", device="cpu")
    ended = runner.run(school.catalogue.submit(kind, asked, volume_id=volume_id).id)
    assert ended is not None
    return ended


def assert_refused(job: Job, budget: int, *words: str) -> None:
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "over-budget")
    assert job.error["needed"] > job.error["allowed"] == budget
    numbers = (f"{job.error['needed']:,}", f"{budget:,}")
    for word in (*numbers, *words, "TOMOTRAIN_MEMORY_BUDGET_BYTES"):
        assert word in job.error["detail"]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scan may be prepared."""

    def fail(*_: object) -> None:
        raise AssertionError("a scan was prepared")

    monkeypatch.setattr(Preparation, "apply", fail)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "asked",
    [
        {"regressor": "resnet3d", "settings": {}},
        {"regressor": "auto", "candidates": ["voxel_ridge", "resnet3d"], "settings": {}},
        {"settings": {"grid": 3}, "preparation": {"shape": [64, 2048, 2048]}},
    ],
)
def test_a_training_that_would_take_too_much_is_refused(asked: dict[str, Any], school: School) -> None:
    budget = 3 << 30
    job = run(school, budget, "train", {**QUICK, **asked, "rows": school.rows})
    name = "voxel_ridge" if "preparation" in asked else "resnet3d"
    grid = "64 x 2048 x 2048" if "preparation" in asked else "16 x 24 x 24"
    assert_refused(job, budget, f"{name} takes", f"at {grid} voxels", "another regressor", "a coarser grid")


@pytest.fixture(scope="module")
def model(school: School) -> Job:
    return school.train()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("kind", ["predict", "evaluate"])
def test_asking_a_model_that_would_take_too_much_is_refused(kind: str, school: School, model: Job) -> None:
    volume_id = school.rows[0]["volume_id"]
    if kind == "predict":
        asked: dict[str, Any] = {"model": model.id, "covariates": COVARIATES}
        budget = BASE_BYTES + 4 * 16 * 24 * 20
    else:
        asked, volume_id = {"model": model.id, "rows": school.rows[:3]}, None
        budget = BASE_BYTES + CACHE
    budget += VoxelRidge(3).answering_bytes(Extent((16, 24, 24), 1, 1, 1, 2)) - 1
    job = run(school, budget, kind, asked, volume_id)
    assert_refused(job, budget, "voxel_ridge takes", "at 16 x 24 x 24 voxels")


def test_a_model_that_is_too_large_is_not_loaded(
    school: School, model: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LOADING_COPIES", 1 << 20)
    monkeypatch.setattr(models.TrainedModel, "load", None)
    job = run(
        school, 1 << 30, "predict", {"model": model.id, "covariates": COVARIATES}, school.rows[0]["volume_id"]
    )
    assert_refused(job, 1 << 30, f"the model has {model.artifacts[0].size:,} bytes", "a smaller one")


@pytest.mark.parametrize("short", [0, 1])
def test_scans_are_held_where_there_is_room_beside_the_recipe(
    short: int, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[HeldScan] = []

    class Counted(HeldScan):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            held.append(self)

    monkeypatch.setattr(preparing, "HeldScan", Counted)
    room = VoxelRidge(3).training_bytes(COHORT) + COHORT.scans * scan_bytes(COHORT)
    budget = BASE_BYTES + CACHE + room - short
    job = run(school, budget, "train", {**QUICK, "rows": school.rows})
    assert job.state is JobState.SUCCEEDED, job.error
    assert len(held) == (0 if short else 14)
