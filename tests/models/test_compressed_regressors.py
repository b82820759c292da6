"""Compressed regressors: planned and recalibrated on scans, descended further, saved and loaded alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_cohorts import Killed, KilledAt, Memory, cohort_of

from models.compression.budgets import BudgetConfig
from models.compression.planning import Config
from models.compression.structure import is_plain
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.regressors.compressed import batches_of, compressed_model, example_of, planned, tuned
from models.regressors.network_model import NetworkModel
from models.regressors.neural import Answers, Scaling
from models.regressors.resnet import ResNet
from models.regressors.resnet3d import ResNet3d, WholeSight
from models.regressors.trains import TrainFeaturesConfig
from models.regressors.tt_mlp import TtMlp
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import FactorisedLayer
from models.sttp.apply import SpectralConfig
from models.training import TrainingConfig, Watch
from models.types import Array

CPU = torch.device("cpu")
SHAPE = (6, 10, 8)
TRAINING = TrainingConfig(epochs=2, batch=3, rate=1e-3, checkpoint_steps=1)
RECIPES: dict[str, ResNet3d | TtMlp] = {
    "resnet3d": ResNet3d(width=4, depth=10, training=replace(TRAINING, epochs=1)),
    "tt_mlp": TtMlp(TrainFeaturesConfig(count=4), batch_norm=True, training=replace(TRAINING, epochs=1)),
}
CONFIGS: dict[str, Config] = {
    "ring": RingConfig(0.7, modes=(3, 4)),
    "pcr": BudgetConfig(pcr=2.5, modes=(3,)),
    "svdp": SpectralConfig("svdp", rho=0.2),
    "sttp": SpectralConfig("sttp", rank=3, spectrum="constant"),
}
Made = NetworkModel[Any]


def cohort(count: int = 7, seed: int = 0) -> Cohort:
    """One scan twice, another without a row."""
    rng = np.random.default_rng(seed)
    whole = cohort_of(
        rng.normal(size=(count, *SHAPE)).astype(np.float32), np.zeros(count), np.zeros((count, 1))
    )
    scan_of = np.array([1, *range(1, count)])
    inputs = Inputs(whole.inputs.scans, scan_of, rng.normal(size=(count, 1)))
    return Cohort(inputs, whole.patients, rng.normal(50, 9, count))


COHORT = cohort()
TRAINED: dict[str, Made] = {}


def trained(name: str) -> Made:
    """Once for all tests, none of which may change it."""
    if name not in TRAINED:
        TRAINED[name] = RECIPES[name].fit(COHORT, Task(), seed=0, device=CPU, watch=Watch())
    return TRAINED[name]


def same(first: dict[str, Array], second: dict[str, Array]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_compressed_model_is_smaller_and_the_same_after_saving(name: str, config: str) -> None:
    model, inputs = trained(name), COHORT.inputs
    before, told = model.tensors(), model.predict(inputs)
    plan = planned(model, CONFIGS[config], inputs, Watch())
    made = compressed_model(model, plan, inputs, Watch(), batch=3)
    assert len(plan.forms) > 1
    assert same(model.tensors(), before)
    assert np.array_equal(model.predict(inputs), told)
    assert same(compressed_model(model, plan, inputs, Watch(), batch=3).tensors(), made.tensors())

    tensors, manifest = made.tensors(), made.manifest()
    assert manifest["parameters"] == plan.parameters_after < model.manifest()["parameters"]
    loaded = RECIPES[name].load(tensors, manifest, Task(), CPU)
    answers = loaded.predict(inputs)
    assert np.array_equal(answers, made.predict(inputs))
    assert not np.array_equal(answers, told)
    assert same(loaded.tensors(), tensors)
    assert loaded.manifest() == manifest
    laid_out, again = ({n: p.stride() for n, p in m.network.named_parameters()} for m in (made, loaded))
    assert laid_out == again


def test_layers_run_as_planned_and_answer_alike_in_every_execution() -> None:
    model, inputs = trained("resnet3d"), COHORT.inputs
    rebuilt = planned(model, CONFIGS["ring"], inputs, Watch())
    separable = replace(
        rebuilt,
        layers=tuple(
            layer if layer.form is None else replace(layer, form=replace(layer.form, execution="separable"))
            for layer in rebuilt.layers
        ),
    )
    first, second = (compressed_model(model, plan, inputs, Watch(), batch=3) for plan in (rebuilt, separable))
    again = RECIPES["resnet3d"].load(second.tensors(), second.manifest(), Task(), CPU)
    executions = [m.plan for m in again.network.modules() if isinstance(m, FactorisedLayer)]
    assert executions == ["separable"] * len(rebuilt.forms)
    assert np.array_equal(again.predict(inputs), second.predict(inputs))
    assert np.allclose(first.predict(inputs), second.predict(inputs), rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_as_it_was_trained_says_nothing_of_a_structure(name: str) -> None:
    model = trained(name)
    assert is_plain(model.network)
    assert "structure" not in model.manifest()
    own = model.network.state_dict()
    kept = {f"network.{key}": value.numpy() for key, value in own.items() if "_extra_state" not in key}
    assert same({key: value for key, value in model.tensors().items() if key in kept}, kept)


@pytest.mark.parametrize("size", [1, 2, 4, 50])
def test_batches_are_of_all_scans_that_have_rows_and_their_rows(size: int) -> None:
    model = trained("resnet3d")
    assert isinstance(model.network, ResNet)
    seen, covariates, scan_of = (torch.cat(parts) for parts in zip(*shifted(model, size), strict=True))
    answers = model.network(seen, covariates, scan_of)
    order = np.argsort(COHORT.inputs.scan_of, kind="stable")
    assert np.allclose(model.answers.from_outputs(answers), model.predict(COHORT.inputs)[order], atol=1e-3)
    assert len(seen) == 6
    sizes = [len(batch[0]) for batch in batches_of(model, COHORT.inputs, size)]
    assert min(sizes) >= min(size, 6)
    assert max(sizes) < 2 * size or len(sizes) == 1
    assert [tuple(part.shape) for part in example_of(model, COHORT.inputs)] == [(1, 1, *SHAPE), (1, 1), (1,)]


def shifted(model: Made, size: int) -> list[tuple[torch.Tensor, ...]]:
    """Batches whose rows know their scans by numbers in all batches."""
    found: list[tuple[torch.Tensor, ...]] = []
    start = 0
    for seen, covariates, scan_of in batches_of(model, COHORT.inputs, size):
        found.append((seen, covariates, scan_of + start))
        start += len(seen)
    return found


def test_normalisations_have_the_averages_of_the_compressed_network() -> None:
    model, inputs = trained("resnet3d"), COHORT.inputs
    plan = planned(model, CONFIGS["ring"], inputs, Watch())
    made = compressed_model(model, plan, inputs, Watch(), batch=3)
    copy = RECIPES["resnet3d"].load(made.tensors(), made.manifest(), Task(), CPU).network
    assert isinstance(copy, ResNet)
    copy.settle(seen for seen, _, _ in batches_of(model, inputs, 3))
    settled, found = copy.state_dict(), made.network.state_dict()
    averages = [key for key in found if "running" in key]
    assert len(averages) == 2 * sum("running_mean" in key for key in model.network.state_dict())
    for key in averages:
        assert torch.allclose(found[key], settled[key], rtol=1e-4, atol=1e-6), key


def test_planning_and_recalibration_end_when_what_watches_says_so() -> None:
    model, inputs = trained("resnet3d"), COHORT.inputs
    before = model.tensors()
    for phase in ("searching", "factorising"):
        with pytest.raises(Killed):
            planned(model, CONFIGS["ring"], inputs, Watch(KilledAt(3, phase)))
    plan = planned(model, CONFIGS["ring"], inputs, Watch())
    with pytest.raises(Killed):
        compressed_model(model, plan, inputs, Watch(KilledAt(1, "recalibrating")), batch=3)
    assert same(model.tensors(), before)


@pytest.mark.parametrize(("name", "config"), [("resnet3d", "ring"), ("resnet3d", "svdp"), ("tt_mlp", "pcr")])
def test_a_compressed_model_descends_further_and_goes_on_after_kill_to_the_same_bits(
    name: str, config: str
) -> None:
    model = trained(name)
    plan = planned(model, CONFIGS[config], COHORT.inputs, Watch())
    made = compressed_model(model, plan, COHORT.inputs, Watch(), batch=3)
    before, kept = made.tensors(), Memory()
    whole = tuned(made, COHORT, TRAINING, seed=3, watch=Watch()).tensors()
    with pytest.raises(Killed):
        tuned(made, COHORT, TRAINING, seed=3, watch=Watch(KilledAt(2), kept))
    resumed = tuned(made, COHORT, TRAINING, seed=3, watch=Watch(checkpoints=kept))
    assert same(resumed.tensors(), whole)
    assert same(made.tensors(), before)
    assert not same(whole, before)
    loaded = RECIPES[name].load(resumed.tensors(), resumed.manifest(), Task(), CPU)
    assert np.array_equal(loaded.predict(COHORT.inputs), resumed.predict(COHORT.inputs))
    with pytest.raises(InvalidShape, match="another training"):
        tuned(resumed, COHORT, TRAINING, seed=3, watch=Watch(checkpoints=kept))


def test_descending_further_lowers_the_error_that_compression_made() -> None:
    rng = np.random.default_rng(1)
    shares = rng.normal(size=24)
    scans = rng.normal(size=(24, *SHAPE)) + shares[:, None, None, None]
    learned = cohort_of(scans.astype(np.float32), shares, np.zeros((24, 0)))
    recipe = ResNet3d(width=4, depth=10, training=TrainingConfig(epochs=12, batch=8, rate=1e-2))
    model = recipe.fit(learned, Task(), seed=0, device=CPU, watch=Watch())
    plan = planned(model, RingConfig(0.9), learned.inputs, Watch())
    made = compressed_model(model, plan, learned.inputs, Watch(), batch=8)
    further = tuned(made, learned, TrainingConfig(epochs=12, batch=8, rate=3e-3), seed=0, watch=Watch())

    def error(each: Made) -> float:
        return float(np.square(each.predict(learned.inputs)[:, 0] - shares).mean())

    assert error(further) < 0.7 * error(made)
    assert further.answers == model.answers
    assert further.covariates is model.covariates


def test_what_does_not_fit_is_refused_and_the_model_stays() -> None:
    model, inputs = trained("resnet3d"), COHORT.inputs
    before, plan = model.tensors(), planned(model, CONFIGS["ring"], inputs, Watch())
    made = compressed_model(model, plan, inputs, Watch(), batch=3)
    nobody = Inputs(inputs.scans, np.zeros(0, np.int64), np.zeros((0, 1)))
    small = cohort_of(np.zeros((1, 3, 3, 3), np.float32), np.zeros(1), np.zeros((1, 1))).inputs
    for given, words in ((nobody, "no row"), (small, "prepare them"), (cohort_of_two(), "2 covariates")):
        with pytest.raises(InvalidShape, match=words):
            compressed_model(model, plan, given, Watch(), batch=3)
    with pytest.raises(InvalidConfig, match="batch"):
        compressed_model(model, plan, inputs, Watch(), batch=0)
    with pytest.raises(InvalidConfig, match="plan anew"):
        compressed_model(trained("tt_mlp"), replace(plan, layers=()), inputs, Watch(), batch=3)
    tiny = cohort_of(np.zeros((3, 2, 2, 2), np.float32), np.zeros(3))
    lone = NetworkModel(
        WholeSight((2, 2, 2), 1, CPU),
        ResNet(1, 1, 0, width=2, depth=10),
        Answers(Task()),
        Scaling.of(np.zeros((3, 0))),
    )
    with pytest.raises(InvalidShape, match="more than 1 value"):
        tuned(lone, tiny, replace(TRAINING, batch=1), seed=0, watch=Watch())
    tensors, manifest = made.tensors(), made.manifest()
    other = {**manifest["structure"], "layers": {"blocks.9": {}}}
    for structure, words in ((other, r"blocks\.9"), ({}, "weights"), ({"layers": 3}, "says nothing")):
        with pytest.raises(InvalidShape, match=words):
            RECIPES["resnet3d"].load(tensors, {**manifest, "structure": structure}, Task(), CPU)
    assert same(model.tensors(), before)


def cohort_of_two() -> Inputs:
    return cohort_of(np.zeros((1, *SHAPE), np.float32), np.zeros(1), np.zeros((1, 2))).inputs
