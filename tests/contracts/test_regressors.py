"""What every regressor promises (`models.regressors.base`), whatever it does: over all of `REGRESSORS`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource
from small_cohorts import Killed, Memory, smooth_scans

from models.errors import InvalidConfig, InvalidShape, ModelError
from models.learning.cohort import Cohort, Inputs
from models.learning.task import TASK_KINDS, Task
from models.regressors import REGRESSORS
from models.regressors.base import Look, Model, Regressor, Saliency
from models.regressors.settings import settings_of
from models.training import Watch

CPU = torch.device("cpu")
SHAPE = (8, 8, 10)
TRAINS = {"count": 3, "anchors": 8, "fibres": {"layout": "tt", "rank": 2}}
DESCENT = {"encoder": {"hidden": [2], "features": 2}, "starts": 1, "steps": 2, "batch": 4, "voxels": 30}
CPIC: dict[str, Any] = {
    **DESCENT,
    "projected_steps": 2,
    "projection": TRAINS,
    "readout": {"fibres": TRAINS["fibres"], "counts": [3], "poolings": [1]},
}
RESIDUAL = {
    "width": 1,
    "depth": 10,
    "training": {"epochs": 2, "batch": 5, "rate": 1e-2, "checkpoint_steps": 1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {},
    "tabular": {},
    "voxel_ridge": {"grid": 3},
    "tt_ridge": {"trains": TRAINS},
    "tt_mlp": {"trains": TRAINS, "training": {"epochs": 4, "batch": 4, "checkpoint_steps": 1}},
    "random_voxels": {**DESCENT, "readout": {"count": 60, "strata": 2, "poolings": [1, 2]}},
    "cpic": CPIC,
    "cpic_ensemble": {"members": 2, "cpic": {**CPIC, "projected_steps": 0}},
    "resnet3d": RESIDUAL,
    "resnet3d-svdp": {**RESIDUAL, "width": 2, "rank": 1, "spectrum": "regularised"},
    "resnet3d-sttp": {**RESIDUAL, "width": 2, "share": 0.3},
}
"""Small ones; a new regressor needs a line here."""
BLIND = ("constant", "tabular")
"""They look at no scan."""
TASKS = {kind: Task(kind, ("no", "perhaps", "yes") if kind == "classes" else ()) for kind in TASK_KINDS}

each_regressor = pytest.mark.parametrize("name", REGRESSORS)
each_that_looks = pytest.mark.parametrize("name", [name for name in REGRESSORS if name not in BLIND])
each_task = pytest.mark.parametrize("kind", TASK_KINDS)


def recipe(name: str) -> Regressor:
    return REGRESSORS[name].from_settings(SETTINGS[name])


def cohort(kind: str = "mean", *, covariates: int = 1) -> Cohort:
    """9 scans of 5 patients, two rows each; the target is told by the scan and the first covariate."""
    scans, sizes = smooth_scans(9, 0, SHAPE)
    rng, scan_of = np.random.default_rng(1), np.repeat(np.arange(9), 2)
    beside = rng.normal(size=(18, covariates))
    targets = 40 + 30 * sizes[scan_of] + 3 * beside[:, :1].sum(axis=1) + rng.normal(size=18)
    if kind == "classes":
        targets = np.searchsorted(np.quantile(targets, [0.3, 0.7]), targets).astype(float)
    inputs = Inputs(tuple(ArraySource(scan) for scan in scans), scan_of, beside)
    return Cohort(inputs, tuple(f"p{number % 5}" for number in range(9)), targets)


def fit(name: str, made: Cohort, kind: str = "mean", *, seed: int = 3, watch: Watch | None = None) -> Model:
    watch = Watch() if watch is None else watch
    return recipe(name).fit(made, TASKS[kind], seed=seed, device=CPU, watch=watch)


@cache
def fitted(name: str, kind: str = "mean") -> Model:
    """The model of the cohort."""
    return fit(name, cohort(kind), kind)


def asked(seed: int = 7) -> Inputs:
    """New scans and rows about them, in no order, some scans with several."""
    scans, scan_of = smooth_scans(4, seed, SHAPE)[0], np.array([2, 0, 2, 3, 0, 1])
    beside = np.random.default_rng(seed).normal(size=(6, 1))
    return Inputs(tuple(ArraySource(scan) for scan in scans), scan_of, beside)


def close(told: Array, expected: Array) -> bool:
    return bool(np.abs(told - expected).max() <= 1e-9 * np.abs(expected).max())


def in_a_file(model: Model) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors and manifest as they come back: arrays in C's order, and JSON."""
    tensors = {name: np.array(array, order="C") for name, array in model.tensors().items()}
    return tensors, json.loads(json.dumps(model.manifest(), allow_nan=False))


def same(first: Model, second: Model) -> bool:
    """To the bit."""
    (ours, manifest), (theirs, other) = in_a_file(first), in_a_file(second)
    return (
        manifest == other
        and ours.keys() == theirs.keys()
        and all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())
    )


def test_every_regressor_has_small_settings_here() -> None:
    assert list(SETTINGS) == list(REGRESSORS)


@each_regressor
@each_task
def test_answers_are_what_the_task_asks_for(name: str, kind: str) -> None:
    model, inputs = fitted(name, kind), asked()
    told = model.predict(inputs)
    assert told.shape == (6, TASKS[kind].outputs)
    assert told.dtype == np.float64
    assert np.isfinite(told).all()
    if kind == "classes":
        assert told.min() >= 0
        assert told.sum(axis=1) == pytest.approx(np.ones(6))
    elif kind == "quantiles":
        assert (np.diff(told, axis=1) >= 0).all()
    assert (name == "constant") == (len(np.unique(told[:, 0])) == 1)
    assert model.predict(Inputs(inputs.scans, np.zeros(0, np.int64), np.zeros((0, 1)))).shape == (
        0,
        TASKS[kind].outputs,
    )


@each_regressor
@each_task
def test_an_answer_depends_on_its_scan_and_covariates_alone(name: str, kind: str) -> None:
    model, inputs = fitted(name, kind), asked()
    told = model.predict(inputs)
    rows, scans = np.array([3, 5, 0, 0, 4, 1, 2]), np.array([3, 1, 0, 2])
    shuffled = Inputs(
        tuple(inputs.scans[scan] for scan in scans.tolist()),
        np.argsort(scans)[inputs.scan_of[rows]],
        inputs.covariates[rows],
    )
    assert close(model.predict(shuffled), told[rows])
    for row, scan in enumerate(inputs.scan_of.tolist()):
        alone = model.predict(Inputs((inputs.scans[scan],), np.zeros(1, np.int64), inputs.covariates[[row]]))
        assert close(alone[0], told[row])


@each_regressor
def test_a_scan_is_looked_at_once_whatever_the_number_of_its_rows(name: str) -> None:
    def looks(scan_of: list[int]) -> list[dict[tuple[int, ...], int]]:
        inputs = asked()
        model.predict(Inputs(inputs.scans, np.array(scan_of), np.ones((len(scan_of), 1))))
        return [dict(scan.asked) for scan in inputs.scans if isinstance(scan, ArraySource)]

    model = fitted(name)
    once = looks([2, 0])
    assert looks([2, 0, 2, 2, 0]) == once
    assert [bool(each) for each in once] == [name not in BLIND, False, name not in BLIND, False]


@each_regressor
@each_task
def test_a_model_is_the_same_after_saving(name: str, kind: str) -> None:
    model, inputs = fitted(name, kind), asked()
    tensors, manifest = in_a_file(model)
    again = recipe(name).load(tensors, manifest, TASKS[kind], CPU)
    assert np.array_equal(again.predict(inputs), model.predict(inputs))
    assert same(again, model)
    assert manifest["parameters"] > 0
    scan, beside = inputs.scans[0], inputs.covariates[0]
    assert equal_looks(again.look(scan, beside), model.look(scan, beside))


def equal_looks(first: Look, second: Look) -> bool:
    """To the bit, all that they say."""
    ours, theirs = (asdict(replace(look, saliency=None)) for look in (first, second))
    return ours == theirs and equal_saliencies(first.saliency, second.saliency)


def equal_saliencies(first: Saliency | None, second: Saliency | None) -> bool:
    if first is None or second is None:
        return first is second
    ours, theirs = (vars(saliency) for saliency in (first, second))
    return all(np.array_equal(part, theirs[name]) for name, part in ours.items())


@each_regressor
def test_what_was_saved_otherwise_is_refused(name: str) -> None:
    tensors, manifest = in_a_file(fitted(name))
    for broken in ({**manifest, "schema": 99}, {k: v for k, v in manifest.items() if k != "schema"}):
        with pytest.raises(InvalidShape, match="schema"):
            recipe(name).load(tensors, broken, TASKS["mean"], CPU)
    first = next(iter(tensors))
    changed = {**tensors, first: tensors[first] + 1}
    missing = {key: array for key, array in tensors.items() if key != first}
    for mixed in (changed, missing, {**tensors, "more": np.zeros(1)}):
        with pytest.raises(InvalidShape, match="mixed"):
            recipe(name).load(mixed, manifest, TASKS["mean"], CPU)


@each_regressor
@each_task
def test_a_model_of_another_task_is_refused(name: str, kind: str) -> None:
    tensors, manifest = in_a_file(fitted(name, kind))
    others = [task for other, task in TASKS.items() if other != kind]
    for task in [*others, Task("classes", ("a", "b", "c"))]:
        with pytest.raises(InvalidShape):
            recipe(name).load(tensors, manifest, task, CPU)


@each_regressor
@each_task
def test_a_look_is_sound(name: str, kind: str) -> None:
    model, inputs = fitted(name, kind), asked()
    scan, beside = inputs.scans[1], inputs.covariates[1]
    look, voxels = model.look(scan, beside), int(np.prod(SHAPE))
    assert equal_looks(model.look(scan, beside), look)
    assert (look.voxels > 0) == (name not in BLIND)
    assert look.voxels <= voxels
    assert (look.distance is None) == (look.distance_percentile is None)
    if look.distance is not None and look.distance_percentile is not None:
        assert 0 <= look.distance < np.inf
        assert 0 <= look.distance_percentile <= 100
    if look.certificate is not None:
        json.dumps(look.certificate, allow_nan=False)
    if look.saliency is not None:
        at, weights = look.saliency.voxels, look.saliency.weights
        assert at.shape == (len(weights), 3)
        assert 0 < len(weights) <= look.voxels
        assert (np.diff(np.ravel_multi_index(tuple(at.T), SHAPE)) > 0).all()  # within, ascending, distinct
        assert np.isfinite(weights).all()


@each_regressor
def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_read_or_changed(name: str) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    state, numbers = torch.random.get_rng_state(), np.random.get_state()[1]
    assert same(fit(name, cohort()), fitted(name))
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])


@each_regressor
def test_another_number_of_covariates_is_refused(name: str) -> None:
    inputs = asked()
    for count in (0, 2) if name != "constant" else ():
        with pytest.raises(InvalidShape, match="covariates"):
            fitted(name).predict(Inputs(inputs.scans, inputs.scan_of, np.zeros((6, count))))


@each_that_looks
def test_another_number_of_channels_is_refused(name: str) -> None:
    two = ArraySource(np.zeros((2, *SHAPE), np.float32))
    with pytest.raises(InvalidShape):
        fitted(name).predict(Inputs.of([two], np.zeros((1, 1))))
    with pytest.raises(InvalidShape):
        fitted(name).look(two, np.zeros(1))


@each_regressor
def test_scans_of_several_channels_are_learned_from_without_covariates_too(name: str) -> None:
    made = cohort(covariates=0)
    volumes = [np.concatenate([scan.volume, 1 - scan.volume]) for scan in made.inputs.scans]  # type: ignore[attr-defined]
    inputs = Inputs(tuple(map(ArraySource, volumes)), made.inputs.scan_of, made.inputs.covariates)
    made = Cohort(inputs, made.patients, made.targets)
    if name == "tabular":
        with pytest.raises(InvalidConfig, match="covariates"):
            fit(name, made)
        return
    model = fit(name, made)
    told = model.predict(inputs)
    assert np.isfinite(told).all()
    saved = recipe(name).load(*in_a_file(model), TASKS["mean"], CPU)
    assert np.array_equal(saved.predict(inputs), told)
    assert equal_looks(saved.look(inputs.scans[0], np.zeros(0)), model.look(inputs.scans[0], np.zeros(0)))


@each_regressor
def test_covariates_that_were_constant_say_nothing(name: str) -> None:
    made = cohort(covariates=2)
    beside = made.inputs.covariates.copy()
    beside[:, 1] = 0.1  # whose mean is not 0.1 to the bit
    model = fit(
        name, Cohort(Inputs(made.inputs.scans, made.inputs.scan_of, beside), made.patients, made.targets)
    )
    inputs = asked()
    told = [
        model.predict(
            Inputs(inputs.scans, inputs.scan_of, np.hstack([inputs.covariates, np.full((6, 1), v)]))
        )
        for v in (0.1, 0.2)
    ]
    assert close(told[1], told[0])


@each_that_looks
def test_values_that_are_not_finite_are_refused_and_never_answered(name: str) -> None:
    broken = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(ModelError):
        fitted(name).predict(Inputs.of([ArraySource(broken)], np.zeros((1, 1))))
    made = cohort()
    scans = (ArraySource(broken), *made.inputs.scans[1:])
    inputs = Inputs(scans, made.inputs.scan_of, made.inputs.covariates)
    with pytest.raises(ModelError):
        fit(name, Cohort(inputs, made.patients, made.targets))


@each_regressor
def test_scans_without_anything_in_them_are_answered(name: str) -> None:
    empty = ArraySource(np.zeros(SHAPE, np.float32))
    assert np.isfinite(fitted(name).predict(Inputs.of([empty], np.zeros((1, 1))))).all()
    assert isinstance(fitted(name).look(empty, np.zeros(1)), Look)


class EndedAt:
    """Counts reports, and ends the work at one of them."""

    def __init__(self, number: int | None = None) -> None:
        self.number, self.told = number, 0

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        assert total is None or 0 <= done <= total
        self.told += 1
        if self.told == self.number:
            raise Killed


@each_regressor
def test_a_fit_that_was_ended_again_and_again_goes_on_to_the_same_bits(name: str) -> None:
    counted, kept = EndedAt(), Memory()
    assert same(fit(name, cohort(), watch=Watch(counted)), fitted(name))
    assert (counted.told > 0) == (name not in BLIND)
    for share in (1, 4, 4) if counted.told else ():
        with pytest.raises(Killed):
            fit(name, cohort(), watch=Watch(EndedAt(1 + counted.told // share // 3), kept))
    assert same(fit(name, cohort(), watch=Watch(checkpoints=kept)), fitted(name))


@each_regressor
def test_settings_are_plain_json_and_unknown_ones_are_named(name: str) -> None:
    made = recipe(name)
    assert REGRESSORS[name].from_settings(json.loads(json.dumps(settings_of(made)))) == made
    with pytest.raises(InvalidConfig, match="colour"):
        REGRESSORS[name].from_settings({**SETTINGS[name], "colour": "blue"})
    wrong: dict[type, Callable[[Any], Any]] = {
        int: str,
        float: str,
        bool: int,
        dict: str,
        list: str,
        str: len,
    }
    for setting, value in settings_of(made).items():
        if value is None:
            continue
        with pytest.raises(InvalidConfig) as error:
            REGRESSORS[name].from_settings({setting: wrong[type(value)](value)})
        assert error.value.setting == setting
