"""C-PIC as a recipe: it learns what no frozen encoder tells, and what is saved of it says how it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array
from small_cohorts import Killed, KilledAt, Memory, cohort_of, r2, textured_scans

from models.cpic.encoder import LearnedCpic
from models.cpic.fibres import FibreConfig
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort
from models.learning.linear import LinearHead
from models.learning.task import Task
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.regressors.encoder_training import (
    START_STRATA,
    START_VOXELS,
    Trained,
    first_encoder,
    train_encoder,
)
from models.regressors.encoders import (
    EncoderConfig,
    ProjectionConfig,
    recalibrated,
    seeds_of,
)
from models.regressors.neural import Answers, weights_of
from models.regressors.random_voxels import RandomVoxelsRegressor
from models.regressors.readouts import FibreReadoutConfig, VoxelReadout, VoxelReadoutConfig
from models.training import Watch

CPU = torch.device("cpu")
SHAPE = (10, 10, 10)
MEAN = Task()
READOUT = FibreReadoutConfig(FibreConfig(layout="tt", rank=3), counts=(2, 4), block="best", poolings=(1,))
RECIPE = Cpic(
    EncoderConfig(hidden=(4, 4), features=1),
    starts=1,
    steps=48,
    batch=5,
    voxels=100,
    rate=3e-2,
    readout=READOUT,
)
QUICK = replace(
    RECIPE,
    encoder=EncoderConfig(hidden=(2,), features=2),
    steps=4,
    batch=3,
    voxels=20,
    readout=FibreReadoutConfig(FibreConfig(layout="tt", rank=2), counts=(2,), poolings=(1, 2)),
)


def texture(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Cohort:
    """A texture in a share of the slices, which is asked for; mean and variance tell nothing of it."""
    scans, shares = textured_scans(count, seed, shape)
    return cohort_of(scans, 20 + 100 * shares)


SMALL = texture(6, shape=(8, 8, 8))


def fitted(
    recipe: Cpic | RandomVoxelsRegressor, made: Cohort = SMALL, *, watch: Watch | None = None
) -> CpicModel:
    return recipe.fit(made, MEAN, seed=0, device=CPU, watch=Watch() if watch is None else watch)


def in_a_file(model: CpicModel) -> tuple[dict[str, Array], dict[str, Any]]:
    tensors = {name: np.array(array, order="C") for name, array in model.tensors().items()}
    return tensors, json.loads(json.dumps(model.manifest(), allow_nan=False))


def same(first: CpicModel, second: CpicModel) -> bool:
    (ours, manifest), (theirs, other) = in_a_file(first), in_a_file(second)
    return manifest == other and all(np.array_equal(array, theirs[name]) for name, array in ours.items())


@cache
def learned() -> tuple[CpicModel, Trained]:
    """Trained on a texture, and what was trained."""
    kept = Memory()
    trained = train_encoder(RECIPE, texture(30), MEAN, seed=0, device=CPU, watch=Watch(checkpoints=kept))
    return fitted(RECIPE, texture(30), watch=Watch(checkpoints=kept)), trained


def test_a_texture_is_learned_that_the_frozen_encoder_does_not_tell() -> None:
    new = texture(16, seed=1)
    trained, frozen = learned()[0], fitted(replace(RECIPE, steps=0), texture(30))
    told = [r2(model.predict(new.inputs)[:, 0], new.targets) for model in (trained, frozen)]
    assert told[0] > 0.85
    assert told[1] < 0.6
    assert list(frozen.histories) == []
    losses = trained.histories["pooled"]["losses"]
    assert len(losses) == 48 // (30 // 5)
    assert losses[-1] < 0.5 * losses[0]


def test_the_head_takes_the_block_that_inner_cross_validation_prefers() -> None:
    model, _ = learned()
    assert list(model.inner_errors) == ["principal 2", "principal 4", "kernel", "moments 1"]
    assert model.block == min(model.inner_errors, key=lambda block: model.inner_errors[block])
    assert model.head.choice.error == model.inner_errors[model.block]
    width = {"principal 2": 2, "principal 4": 4, "kernel": 29, "moments 1": 2}[model.block]
    assert model.head.weights.shape == (width, 1)
    weights = sum(array.size for array in weights_of(model.encoder.network).values())
    assert model.manifest()["parameters"] == weights + model.head.parameters


def test_unless_asked_otherwise_the_head_takes_the_train_itself() -> None:
    model = fitted(replace(QUICK, steps=0), texture(7))
    assert (model.block, list(model.inner_errors)) == ("kernel", ["kernel"])
    assert model.head.weights.shape == (6, 1)
    named = replace(QUICK, steps=0, readout=replace(QUICK.readout, block="principal"))
    assert fitted(named, texture(7)).block == "principal 2"


def test_the_head_that_descended_answers_new_scans_too() -> None:
    (model, trained), made, new = learned(), texture(30), texture(16, seed=1)
    readout = VoxelReadout(VoxelReadoutConfig(300, 4, poolings=(2,)), lambda scan: model.encoder, 2, 0, CPU)
    seen, asked = (np.stack([readout(scan) for scan in each.inputs.scans]) for each in (made, new))
    told = recalibrated(trained.network.head, seen, asked, Answers.of(MEAN, made.targets), CPU)[:, 0]
    assert r2(told, new.targets) > 0.8


def test_random_voxels_train_the_same_encoder_and_read_it_at_voxels() -> None:
    shared = ("encoder", "starts", "steps", "batch", "voxels", "rate")
    readout = VoxelReadoutConfig(40, 2, poolings=(1, 2))
    plain = RandomVoxelsRegressor(**{name: getattr(QUICK, name) for name in shared}, readout=readout)
    ours, other = fitted(plain), fitted(QUICK)
    for name, array in weights_of(other.encoder.network).items():
        assert np.array_equal(array, weights_of(ours.encoder.network)[name])
    assert list(ours.inner_errors) == ["moments 1", "moments 2"]
    look = ours.look(SMALL.inputs.scans[0], np.zeros(0))
    assert (look.voxels, look.certificate) == (40, None)
    assert look.distance is not None  # the head's


# How it is saved


@pytest.mark.parametrize("recipe", [QUICK, RandomVoxelsRegressor(QUICK.encoder, steps=0, starts=1)])
def test_a_model_is_loaded_by_what_it_was_made_by_whatever_the_recipe(recipe: Any) -> None:
    """Defaults may change after it was saved."""
    recipe = replace(recipe, encoder=replace(recipe.encoder, sigmoid=True))
    model = fitted(recipe)
    again = type(recipe)().load(*in_a_file(model), MEAN, CPU)
    assert np.array_equal(again.predict(SMALL.inputs), model.predict(SMALL.inputs))
    assert model.manifest()["encoder"]["sigmoid"] is True
    assert same(again, model)


def test_a_model_in_parts_is_refused() -> None:
    tensors, manifest = in_a_file(fitted(QUICK))
    wider = {**manifest, "encoder": {**manifest["encoder"], "hidden": [3]}}
    with pytest.raises(InvalidShape, match="the weights layers"):
        QUICK.load(tensors, wider, MEAN, CPU)
    with pytest.raises(InvalidConfig, match="colour"):
        QUICK.load(tensors, {**manifest, "encoder": {"colour": 3}}, MEAN, CPU)


# The paper's form


PAPER = {
    "mode": "paper",
    "encoder": {"hidden": [2], "features": 2},
    "batch": 3,
    "projected_steps": 4,
    "projection": {"count": 2, "anchors": 4, "fibres": {"rank": 2, "sweeps": 1}},
    "readout": {"fibres": {"rank": 2, "sweeps": 1}, "counts": [2]},
}


def test_the_papers_form_has_the_papers_parameters() -> None:
    recipe, task = Cpic.paper(), Task("quantiles")
    trained = train_encoder(
        replace(
            recipe, projected_steps=1, projection=ProjectionConfig(anchors=3, fibres=FibreConfig(rank=2))
        ),
        texture(3, shape=(6, 6, 6)),
        task,
        seed=0,
        device=CPU,
        watch=Watch(),
    )
    weights = sum(weight.numel() for weight in trained.network.parameters())
    assert weights == 26_569 - 2 * (100 + 20)  # less the batch normalisations of the brain cohort
    assert (recipe.steps, recipe.readout.poolings, recipe.encoder.intensity) == (0, (), False)
    assert recipe.readout.fibres == recipe.projection.fibres
    assert (recipe.readout.fibres.sampling, recipe.readout.fibres.oversampling) == ("scalar", 1.0)


def test_the_papers_settings_are_changed_in_part() -> None:
    recipe = Cpic.from_settings(PAPER)
    assert recipe.encoder == EncoderConfig((2,), 2, 0.0, sigmoid=True, intensity=False)
    fibres = FibreConfig(layout="qtt", sampling="scalar", rank=2, oversampling=1.0, sweeps=1)
    assert recipe.readout == FibreReadoutConfig(fibres, counts=(2,), block="principal", poolings=())
    assert recipe.projection == ProjectionConfig(2, 4, fibres=fibres)
    assert recipe.perceptron
    assert Cpic.from_settings({"mode": "paper"}) == Cpic.paper()


def test_the_papers_form_runs_and_goes_on_to_the_same_bits() -> None:
    recipe, kept = Cpic.from_settings(PAPER), Memory()
    whole = fitted(recipe)
    assert list(whole.histories) == ["projected"]
    assert whole.histories["projected"]["steps"] == 4
    with pytest.raises(Killed):
        fitted(recipe, watch=Watch(KilledAt(2, "trains"), kept))
    assert list(kept.parts) == ["projected"]
    assert same(fitted(recipe, watch=Watch(checkpoints=kept)), whole)
    assert np.isfinite(whole.predict(SMALL.inputs)).all()


def test_both_steps_follow_each_other() -> None:
    projection = ProjectionConfig(2, 4, fibres=FibreConfig(layout="tt", rank=2))
    recipe = replace(QUICK, projected_steps=4, projected_rate=3e-2, projection=projection)
    kept = Memory()
    whole = fitted(recipe)
    assert list(whole.histories) == ["pooled", "projected"]
    told: list[tuple[str, int, int | None]] = []
    watch = Watch(lambda *what: told.append(what), kept)
    assert same(fitted(recipe, watch=watch), whole)
    assert [done for phase, done, _ in told if phase == "training"] == [0, 1, 2, 3, 4] * 2
    assert {phase for phase, _, _ in told} == {"training", "trains"}
    del kept.parts["projected"]  # as if it had been killed between
    assert same(fitted(recipe, watch=Watch(checkpoints=kept)), whole)
    stages = fitted(replace(QUICK, steps=0)), fitted(QUICK), whole
    for before, after in pairwise(weights_of(each.encoder.network)["layers.0.weight"] for each in stages):
        assert np.abs(after - before).max() > 1e-5


# Starts, patience, guides


def test_the_start_that_is_taken_is_the_one_whose_features_tell_most() -> None:
    made, recipe, errors = texture(10), replace(RECIPE, starts=3), []
    networks = [recipe.encoder.network(1, own, CPU) for own in seeds_of(0, 3)]
    for network in networks:
        encoder = LearnedCpic(network)
        config = VoxelReadoutConfig(START_VOXELS, START_STRATA, poolings=(2,))
        readout = VoxelReadout(config, lambda scan, encoder=encoder: encoder, 2, 0, CPU)
        seen = np.stack([readout(scan) for scan in made.inputs.scans])
        errors.append(LinearHead.fit(seen, made.targets, made.row_patients, MEAN).choice.error)
    best, taken = networks[int(np.argmin(errors))], first_encoder(recipe, made, MEAN, seed=0, device=CPU)
    assert all(np.array_equal(array, weights_of(best)[name]) for name, array in weights_of(taken).items())
    assert len(set(errors)) == 3


def test_with_patience_patients_are_held_out_and_the_best_epoch_is_kept() -> None:
    scans, shares = textured_scans(24, 0, (6, 6, 6))
    single = cohort_of(scans, shares)
    made = Cohort(single.inputs, tuple(f"p{number // 2}" for number in range(24)), shares)
    recipe, kept = replace(QUICK, steps=60, patience=2), Memory()
    model = fitted(recipe, made, watch=Watch(checkpoints=kept))
    history = model.histories["pooled"]
    assert len(history["validations"]) == len(history["losses"])
    assert history["best_epoch"] == int(np.argmin(history["validations"]))
    assert len(history["losses"]) in (10, history["best_epoch"] + 3)
    saved = kept.parts["pooled"].saved
    assert saved is not None
    assert saved[1]["items"] == 20  # of 12 patients with two scans each, two are held out
    for name, array in weights_of(model.encoder.network).items():
        assert np.array_equal(saved[0][f"best.encoder.{name}"], array)


def test_patience_needs_scans_to_judge_by() -> None:
    with pytest.raises(
        InvalidConfig, match="patience = 2: must be none where fewer than 3 scans are held out, here 1"
    ):
        fitted(replace(QUICK, patience=2))


def test_scans_may_be_drawn_from_where_they_are_rough() -> None:
    recipe = replace(QUICK, uniform=0.5)
    model = fitted(recipe)
    assert same(fitted(recipe), model)
    assert not same(fitted(QUICK), model)


# Settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", -1),
        ("starts", 0),
        ("batch", 2),
        ("voxels", 0),
        ("pooling", 0),
        ("pooling", 17),
        ("starts", 10**5),
        ("steps", 10**400),
        ("rate", 0.0),
        ("rate", float("nan")),
        ("rate", 10**400),
        ("weight_decay", 1.0),
        ("uniform", 0.0),
    ],
)
@pytest.mark.parametrize("kind", [Cpic, RandomVoxelsRegressor])
def test_settings_that_make_no_sense_are_named(kind: Any, setting: str, value: object) -> None:
    with pytest.raises(InvalidConfig) as error:
        kind(**{setting: value})
    assert error.value.setting == setting


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "papers"}, "mode"),
        ({"mode": "paper", "speed": 3}, "speed"),
        ({"encoder": {"depth": 3}}, "encoder.depth"),
        ({"encoder": {"hidden": [3, "x"]}}, "encoder.hidden"),
        ({"encoder": {"hidden": [2.5]}}, "encoder.hidden"),
        ({"encoder": {"hidden": [10_000, 10_000]}}, "encoder.hidden"),
        ({"encoder": {"hidden": [2] * 9}}, "encoder.hidden"),
        ({"encoder": 3}, "encoder"),
        ({"readout": {"counts": [True]}}, "readout.counts"),
        ({"readout": {"poolings": [200]}}, "readout.poolings"),
        ({"readout": {"poolings": [2] * 100_000}}, "readout.poolings"),
        ({"readout": {"fibres": {"tolerance": "small"}}}, "readout.fibres.tolerance"),
        ({"readout": {"fibres": {"sweeps": 10**9}}}, "readout.fibres.sweeps"),
        ({"projected_rate": -1.0}, "projected_rate"),
        ({"projected_steps": -1}, "projected_steps"),
        ({"perceptron": 1}, "perceptron"),
        ({"patience": 0}, "patience"),
        ({"patience": 1.5}, "patience"),
        ({"steps": 2.0}, "steps"),
    ],
)
def test_settings_that_are_none_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        Cpic.from_settings(settings)
    assert error.value.setting == named
