"""A training goes on from checkpoints of its own program, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.cohorts import School, bare

from models.learning.task import Task
from models.regressors import encoder_training
from models.regressors.constant import Constant
from models.regressors.voxel_ridge import VoxelRidge
from storage.checkpoints import Checkpoints
from storage.errors import StorageFull
from storage.jobs import Job, JobState
from workers import learning, packages
from workers.trials import Terms

NETWORK: dict[str, Any] = {
    "regressor": "random_voxels",
    "settings": {"starts": 1, "steps": 2, "voxels": 8, "readout": {"count": 64, "strata": 4}},
    "folds": 2,
}


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Another version of the program, from now on."""
    later = {**packages.program(), "tomotrain": "9.9"}
    return partial(monkeypatch.setattr, learning, "program", lambda: later)


def broken_off(school: School, monkeypatch: pytest.MonkeyPatch, saves: int, **parameters: Any) -> Job:
    """A training that was given up after so many checkpoints, whose answers are none of today's."""
    kept, real = [], Checkpoints.save

    def save(checkpoints: Checkpoints, tensors: Any, manifest: Any) -> None:
        shifted = {name: array + 1 if name == "outputs" else array for name, array in tensors.items()}
        real(checkpoints, shifted, manifest)
        kept.append(checkpoints)
        if len(kept) == saves:
            raise StorageFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save)
        job = school.train(bare(school.rows[:6]), **parameters)
    assert (job.state, len(kept)) == (JobState.QUEUED, saves)
    return job


def again(school: School, job: Job) -> Job:
    """The job, to its end."""
    ended = school.runner.run(job.id)
    assert ended is not None
    return ended


def found(job: Job) -> tuple[Any, ...]:
    """What a training came to."""
    assert job.result is not None, job.error
    return job.result["model_digest"], job.result["metrics"], job.result["compared"]


def test_answers_of_another_version_are_not_this_ones(
    school: School, monkeypatch: pytest.MonkeyPatch, upgrade: Callable[[], None]
) -> None:
    fresh = found(school.train(bare(school.rows[:6])))
    going_on, beginning = (broken_off(school, monkeypatch, 5) for _ in range(2))
    assert found(again(school, going_on)) != fresh
    upgrade()
    assert found(again(school, beginning)) == fresh


def test_a_network_of_another_version_is_trained_anew(
    school: School, monkeypatch: pytest.MonkeyPatch, upgrade: Callable[[], None]
) -> None:
    fresh = found(school.train(bare(school.rows[:6]), **NETWORK))
    real = encoder_training._training
    with monkeypatch.context() as older:
        older.setattr(encoder_training, "_training", lambda *given: replace(real(*given), weight_decay=0.5))
        going_on, beginning = (broken_off(school, monkeypatch, 3, **NETWORK) for _ in range(2))
    refused = again(school, going_on)
    assert (refused.error or {})["code"] == "invalid-shape"
    upgrade()
    assert found(again(school, beginning)) == fresh


def test_the_purpose_is_all_that_answers_depend_on(upgrade: Callable[[], None]) -> None:
    terms = Terms(Task("mean"), np.arange(4) % 2, (), 0, torch.device("cpu"))
    recipes = {"constant": Constant(), "voxel_ridge": VoxelRidge()}
    table = {"rows": [{"patient": "a", "target": 1.0}]}
    told = [
        learning.purpose(parameters, among, on)
        for parameters, among, on in (
            (table, recipes, terms),
            ({"rows": [{"patient": "a", "target": 2.0}]}, recipes, terms),
            (table, {**recipes, "voxel_ridge": VoxelRidge(grid=3)}, terms),
            (table, recipes, replace(terms, seed=1)),
            (table, recipes, replace(terms, folds=np.arange(4) // 2)),
        )
    ]
    same = learning.purpose(dict(table), dict(reversed(recipes.items())), replace(terms))
    upgrade()
    told.append(learning.purpose(table, recipes, terms))
    assert same == told[0]
    assert len(set(told)) == 6


def test_the_program_is_known_by_its_code_too() -> None:
    assert packages.versions().items() < packages.program().items()
    assert len(packages.program()["code"]) == 64
