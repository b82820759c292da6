"""The constant and the tabular regressor, and linear heads on features of scans."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource
from small_cohorts import Killed, KilledAt

from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.linear import LinearHead
from models.learning.task import QUANTILE_LEVELS, Task
from models.regressors import REGRESSORS
from models.regressors.base import Look
from models.regressors.constant import Constant
from models.regressors.linear_model import LinearModel
from models.regressors.tabular import Tabular
from models.training import Watch
from models.types import Array, CubeSource

CPU = torch.device("cpu")
MEAN, QUANTILES, CLASSES = Task("mean"), Task("quantiles"), Task("classes", ("a", "b", "c"))
TASKS = (MEAN, QUANTILES, CLASSES)


@dataclass(frozen=True)
class Corners:
    """Two voxels of a scan; remembers nothing, and says how far the scan is if told to."""

    distance: float | None = None

    def __call__(self, scan: CubeSource) -> Array:
        return scan.cubes(np.array([[0, 0, 0], [1, 1, 1]]), 1).reshape(2).astype(np.float64)

    def look(self, scan: CubeSource, gradient: Callable[[Array], Array]) -> Look:
        return Look(distance=self.distance, voxels=int(np.count_nonzero(gradient(self(scan)))))

    def tensors(self) -> dict[str, Array]:
        return {"places": np.array([[0, 0, 0], [1, 1, 1]])}

    def manifest(self) -> dict[str, Any]:
        return {"kind": "corners"}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Corners:
        assert tensors["places"].shape == (2, 3)
        assert manifest == {"kind": "corners"}
        return cls()


def cohort(task: Task, scans: int = 30, covariates: int = 2) -> Cohort:
    """Two rows a scan; the target is told by two voxels and a covariate."""
    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(scans, 2, 2, 2))
    scan_of, beside = np.repeat(np.arange(scans), 2), rng.normal(size=(2 * scans, covariates))
    y = 3 * volumes[scan_of, 0, 0, 0] - volumes[scan_of, 1, 1, 1] + beside.sum(axis=1)
    if task is CLASSES:
        y = np.searchsorted((-1.5, 1.5), y).astype(float)
    inputs = Inputs(tuple(ArraySource(volume) for volume in volumes), scan_of, beside)
    return Cohort(inputs, tuple(f"p{k}" for k in range(scans)), y)


def fitted(recipe: Any, made: Cohort, task: Task) -> Any:
    return recipe.fit(made, task, seed=0, device=CPU, watch=Watch())


def test_regressors_are_found_by_name_and_take_no_unknown_settings() -> None:
    assert list(REGRESSORS)[:2] == ["constant", "tabular"]
    for name, recipe in REGRESSORS.items():
        assert recipe.name == name
        assert recipe.from_settings({}) == recipe()
        with pytest.raises(InvalidConfig, match="speed"):
            recipe.from_settings({"speed": 3})


def test_the_constant_is_the_mean_the_quantiles_or_the_shares() -> None:
    for task in TASKS:
        made = cohort(task)
        told = fitted(Constant(), made, task).predict(made.inputs)
        assert told.shape == (60, task.outputs)
        assert np.ptp(told, axis=0).max() == 0
        y = made.targets
        if task is CLASSES:
            assert told[0] == pytest.approx((np.bincount(y.astype(int), minlength=3) + 0.5) / 61.5)
        else:
            assert told[0] == pytest.approx([y.mean()] if task is MEAN else np.quantile(y, QUANTILE_LEVELS))


def test_a_class_that_never_came_is_not_impossible() -> None:
    made = cohort(MEAN)
    two = Cohort(made.inputs, made.patients, np.arange(60.0) % 2)
    told = fitted(Constant(), two, CLASSES).predict(made.inputs)[0]
    assert 0 < told[2] < 0.01
    assert told.sum() == pytest.approx(1)


def test_the_tabular_regressor_is_a_head_on_covariates_and_never_looks() -> None:
    for task in TASKS:
        made = cohort(task)
        model = fitted(Tabular(), made, task)
        head = LinearHead.fit(made.inputs.covariates, made.targets, made.row_patients, task)
        assert np.array_equal(model.predict(made.inputs), head.predict(made.inputs.covariates))
        assert model.look(made.inputs.scans[0], made.inputs.covariates[0]) == Look()
        assert not any(scan.asked for scan in made.inputs.scans)  # type: ignore[attr-defined]


def test_the_tabular_regressor_refuses_a_cohort_without_covariates() -> None:
    with pytest.raises(InvalidConfig, match="covariates = 0: must be at least 1 for the regressor tabular"):
        fitted(Tabular(), cohort(MEAN, covariates=0), MEAN)
    model = fitted(Tabular(), cohort(MEAN), MEAN)
    with pytest.raises(InvalidShape, match="3 covariates, the training had 2"):
        model.predict(cohort(MEAN, covariates=3).inputs)


@pytest.mark.parametrize("recipe", [Constant(), Tabular()], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_saved_model_answers_with_the_same_bits(recipe: Constant | Tabular, task: Task) -> None:
    made = cohort(task)
    model = fitted(recipe, made, task)
    manifest = json.loads(json.dumps(model.manifest(), allow_nan=False))
    again = recipe.load(model.tensors(), manifest, task, CPU)
    assert np.array_equal(again.predict(made.inputs), model.predict(made.inputs))
    assert again.manifest() == model.manifest()
    assert model.manifest()["parameters"] > 0
    with pytest.raises(InvalidShape, match="schema 7, not 1"):
        recipe.load(model.tensors(), {**manifest, "schema": 7}, task, CPU)
    mixed = {name: tensor + 1 for name, tensor in model.tensors().items()}
    with pytest.raises(InvalidShape, match="mixed"):
        recipe.load(mixed, manifest, task, CPU)
    with pytest.raises(InvalidShape):
        recipe.load(model.tensors(), manifest, Task("classes", tuple("abcdefg")), CPU)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_linear_model_looks_at_each_scan_once_and_is_saved_to_the_bit(task: Task) -> None:
    made = cohort(task)
    model = LinearModel.fit(Corners(), made, task, seed=0, watch=Watch())
    assert all(scan.asked.total() == 2 for scan in made.inputs.scans)  # type: ignore[attr-defined]
    told = model.predict(made.inputs)
    assert all(scan.asked.total() == 4 for scan in made.inputs.scans)  # type: ignore[attr-defined]
    one = model.predict(made.inputs.only(np.array([7])))
    assert np.allclose(one, told[14:16], rtol=0, atol=1e-12)
    hits = told.argmax(axis=1) == made.targets if task is CLASSES else abs(told[:, -1] - made.targets) < 0.05
    assert hits.mean() > 0.9
    assert model.predict(Inputs(made.inputs.scans, np.zeros(0, int), np.zeros((0, 2)))).shape == (
        0,
        task.outputs,
    )
    manifest = json.loads(json.dumps(model.manifest(), allow_nan=False))
    again = LinearModel.from_saved(Corners.from_saved, model.tensors(), manifest, task)
    assert np.array_equal(again.predict(made.inputs), told)
    with pytest.raises(InvalidShape, match="mixed"):
        LinearModel.from_saved(
            Corners.from_saved, {**model.tensors(), "features.places": np.zeros((2, 3))}, manifest, task
        )
    other = QUANTILES if task is MEAN else MEAN
    with pytest.raises(InvalidShape, match="the head answers"):
        LinearModel.from_saved(Corners.from_saved, model.tensors(), manifest, other)


def test_features_that_are_known_are_not_computed_again() -> None:
    made = cohort(MEAN)
    model = LinearModel.fit(Corners(), made, MEAN, seed=0, watch=Watch())
    known = np.stack([Corners()(scan) for scan in made.inputs.scans])
    fresh = cohort(MEAN)
    again = LinearModel.fit(Corners(), fresh, MEAN, seed=0, watch=Watch(), known=known)
    assert not any(scan.asked for scan in fresh.inputs.scans)  # type: ignore[attr-defined]
    assert np.array_equal(again.head.weights, model.head.weights)


def test_a_look_has_the_heads_distance_unless_the_features_have_their_own() -> None:
    made = cohort(MEAN)
    model = LinearModel.fit(Corners(), made, MEAN, seed=0, watch=Watch())
    beside = made.inputs.covariates[0]
    near, far = (model.look(ArraySource(np.full((2, 2, 2), v)), beside) for v in (0.1, 9.0))
    assert near.voxels == 2
    assert near.distance_percentile is not None
    assert near.distance_percentile < 20
    assert far.distance_percentile == 100
    own = LinearModel(Corners(3.0), model.head).look(made.inputs.scans[0], beside)
    assert (own.distance, own.distance_percentile) == (3.0, None)


def test_looking_at_scans_is_told_and_may_be_ended() -> None:
    made, told = cohort(MEAN), []
    LinearModel.fit(Corners(), made, MEAN, seed=0, watch=Watch(lambda *what: told.append(what)))
    assert told == [("features", done, 30) for done in range(30)]
    with pytest.raises(Killed):
        LinearModel.fit(Corners(), made, MEAN, seed=0, watch=Watch(KilledAt(5, "features")))
