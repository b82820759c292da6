"""The dense baseline: the network of the literature; seeded, resumable, each scan looked at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource
from small_cohorts import Killed, KilledAt, Memory, cohort_of, r2, textured_scans

from models.errors import InvalidConfig, InvalidShape, SourceFailed
from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.regressors.base import Model
from models.regressors.resnet import ResNet, least_places
from models.regressors.resnet3d import ResNet3d
from models.training import TrainingConfig, Watch

CPU = torch.device("cpu")
QUICK = ResNet3d(width=2, depth=10, training=TrainingConfig(epochs=2, batch=3, rate=1e-2, checkpoint_steps=1))
SHAPE = (6, 10, 8)


def fitted(cohort: Cohort, task: Task | None = None, recipe: ResNet3d = QUICK, **how: Any) -> Any:
    watch = how.pop("watch", Watch())
    return recipe.fit(cohort, task or Task(), seed=how.pop("seed", 0), device=CPU, watch=watch)


def noise_cohort(count: int, *, covariates: int = 0, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    scans = rng.normal(size=(count, *SHAPE)).astype(np.float32)
    return cohort_of(scans, rng.normal(50, 9, count), rng.normal(size=(count, covariates)))


def weights(network: ResNet, kind: type[torch.nn.Module]) -> int:
    modules = [module for module in network.modules() if isinstance(module, kind)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_it_is_a_resnet_34_of_63_million_weights() -> None:
    network = ResNet(1, 1, seed=0)
    stages = [27 * (64 << s) ** 2 * (2 * blocks - 1) for s, blocks in enumerate((3, 4, 6, 3))]
    first = [27 * 64 * 64] + [27 * (64 << s) ** 2 // 2 for s in (1, 2, 3)]
    shortcuts = [(64 << s) ** 2 // 2 for s in (1, 2, 3)]
    assert weights(network, torch.nn.Conv3d) == 7**3 * 64 + sum(stages) + sum(first) + sum(shortcuts)
    assert sum(parameter.numel() for parameter in network.parameters()) == 63_470_145
    assert sum(isinstance(module, torch.nn.Conv3d) for module in network.modules()) == 33 + 3


@pytest.mark.parametrize("shape", [(16, 32, 24), (9, 17, 33), (1, 1, 1), (5, 64, 7)])
def test_it_shrinks_scans_as_the_literature_says(shape: tuple[int, int, int]) -> None:
    network = ResNet(1, 1, seed=0, width=1, depth=10).eval()
    seen: list[tuple[int, ...]] = []
    for module in (network.stem, network.blocks[0], network.blocks[-1]):
        module.register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape[1:])))
    network(torch.zeros(1, 1, *shape), torch.zeros(1, 0), torch.zeros(1, dtype=torch.long))
    z, y, x = shape
    half = [-(-size // 2) for size in (z, -(-y // 2), -(-x // 2))]
    assert seen[0] == (1, z, -(-y // 2), -(-x // 2))
    assert seen[1] == (1, *half)
    assert seen[2] == (8, *(-(-size // 8) for size in half))
    assert np.prod(seen[2][1:]) == least_places(shape)


def test_weights_and_training_are_drawn_from_the_seed_alone() -> None:
    cohort = noise_cohort(7)
    torch.manual_seed(1)
    state, numbers = torch.random.get_rng_state(), np.random.get_state()[1]
    first, again, other = (fitted(cohort, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])
    for name, tensor in first.tensors().items():
        assert np.array_equal(tensor, again.tensors()[name])
    assert not np.array_equal(first.predict(cohort.inputs), other.predict(cohort.inputs))


def test_it_learns_a_texture_that_is_nothing_in_the_mean_and_tells_it_of_new_scans() -> None:
    recipe = ResNet3d(width=4, depth=10, training=TrainingConfig(epochs=16, batch=8, rate=1e-2))
    scans, shares = textured_scans(64, 0, (8, 16, 16))
    model = fitted(cohort_of(scans, 100 * shares + 7), recipe=recipe)
    scans, shares = textured_scans(40, 1, (8, 16, 16))
    assert r2(model.predict(cohort_of(scans, shares).inputs)[:, 0], 100 * shares + 7) > 0.7


def test_it_learns_quantiles_and_classes_of_covariates_too() -> None:
    rng = np.random.default_rng(3)
    recipe = ResNet3d(width=1, depth=10, training=TrainingConfig(epochs=40, batch=16, rate=1e-1))
    covariates = rng.normal(size=(32, 1))
    targets = 200 + 30 * covariates[:, 0]
    scans = np.zeros((32, 4, 4, 4), np.float32)
    quantiles = fitted(cohort_of(scans, targets, covariates), Task("quantiles"), recipe)
    told = quantiles.predict(cohort_of(scans, targets, covariates).inputs)
    assert told.shape == (32, 3)
    assert (np.diff(told, axis=1) >= 0).all()
    assert r2(told[:, 1], targets) > 0.9
    task = Task("classes", ("no", "yes"))
    classes = fitted(cohort_of(scans, covariates[:, 0] > 0, covariates), task, recipe)
    told = classes.predict(cohort_of(scans, targets, covariates).inputs)
    assert np.allclose(told.sum(axis=1), 1)
    assert ((told[:, 1] > 0.5) == (covariates[:, 0] > 0)).mean() > 0.9


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_training_goes_on_to_the_same_bits(step: int) -> None:
    cohort, kept = noise_cohort(7, covariates=2), Memory()
    with pytest.raises(Killed):
        fitted(cohort, watch=Watch(KilledAt(step), kept))
    assert kept.saved is not None
    resumed, whole = fitted(cohort, watch=Watch(checkpoints=kept)).tensors(), fitted(cohort).tensors()
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert np.array_equal(resumed[name], tensor), name


def rows_of(cohort: Cohort, scans: list[int], covariates: Array) -> Inputs:
    return Inputs(cohort.inputs.scans, np.array(scans), covariates)


def test_each_scan_is_read_once_whole_and_its_answer_does_not_depend_on_others() -> None:
    cohort = noise_cohort(5, covariates=1)
    model = fitted(cohort)
    covariates = np.linspace(-1, 1, 6)[:, None]
    inputs = rows_of(cohort, [3, 0, 3, 4, 3, 0], covariates)
    sources = [scan for scan in inputs.scans if isinstance(scan, ArraySource)]
    for source in sources:
        source.asked.clear()
    together = model.predict(inputs)
    assert [source.asked.total() for source in sources] == [1, 0, 0, 1, 1]
    for row, scan in enumerate([3, 0, 3, 4, 3, 0]):
        alone = model.predict(Inputs((cohort.inputs.scans[scan],), np.zeros(1, int), covariates[[row]]))
        assert np.array_equal(alone[0], together[row])
    assert len(np.unique(together)) == 6


def test_scans_are_read_in_slabs_of_bounded_thickness() -> None:
    rng = np.random.default_rng(0)
    scans = rng.normal(size=(3, 70, 4, 4)).astype(np.float32)
    cohort = cohort_of(scans, np.arange(3.0))
    fitted(cohort)
    asked = [source.asked for source in cohort.inputs.scans if isinstance(source, ArraySource)]
    assert all(
        set(each) == {(32, 4, 4, 0, 0, 0), (32, 4, 4, 32, 0, 0), (6, 4, 4, 64, 0, 0)} for each in asked
    )
    assert all(each.total() == 3 for each in asked)  # once for all epochs


def test_normalisations_in_place_change_nothing_but_rounding() -> None:
    network = ResNet(2, 3, seed=1, width=3, depth=18)
    volumes = torch.randn(4, 2, 9, 12, 10, generator=torch.Generator().manual_seed(0))
    network.settle([volumes, volumes + 1])
    network.eval()
    rows = torch.zeros(4, 0), torch.arange(4)
    with torch.no_grad():
        in_place = network(volumes, *rows)
    plain = network(volumes, *rows).detach()
    assert float((plain - in_place).abs().max()) < 1e-5 * float(plain.abs().max() + 0.01)
    assert float((plain[0] - plain[1]).abs().max()) > 0


def test_settled_normalisations_are_those_of_the_batches() -> None:
    network = ResNet(1, 1, seed=0, width=2, depth=10)
    first, second = (
        torch.randn(3, 1, 6, 8, 8, generator=torch.Generator().manual_seed(seed)) + seed for seed in (1, 5)
    )
    network.settle([first, second])
    before = [network.stem.conv(batch).detach() for batch in (first, second)]
    mean = sum(batch.mean(dim=(0, 2, 3, 4)) for batch in before) / 2
    variance = sum(batch.var(dim=(0, 2, 3, 4)) for batch in before) / 2
    assert torch.allclose(network.stem.norm.running_mean, mean, atol=1e-6)
    assert torch.allclose(network.stem.norm.running_var, variance, rtol=1e-5)


def test_a_model_is_the_same_after_saving() -> None:
    cohort = noise_cohort(4, covariates=1)
    model = fitted(cohort)
    tensors, manifest = model.tensors(), model.manifest()
    again: Model = QUICK.load(tensors, manifest, Task(), CPU)
    assert np.array_equal(again.predict(cohort.inputs), model.predict(cohort.inputs))
    assert (
        manifest["parameters"] == sum(p.numel() for p in ResNet(1, 1, 0, width=2, depth=10).parameters()) + 1
    )
    changed = {**tensors, "network.stem.conv.weight": tensors["network.stem.conv.weight"] + 1}
    with pytest.raises(InvalidShape, match="mixed"):
        QUICK.load(changed, manifest, Task(), CPU)
    with pytest.raises(InvalidShape, match="schema 7"):
        QUICK.load(tensors, {**manifest, "schema": 7}, Task(), CPU)
    with pytest.raises(InvalidShape, match="weights"):
        ResNet3d(width=3, depth=10).load(tensors, manifest, Task(), CPU)


def test_what_does_not_fit_is_refused() -> None:
    model = fitted(noise_cohort(4, covariates=1))
    with pytest.raises(InvalidShape, match="2 covariates, the training had 1"):
        model.predict(noise_cohort(2, covariates=2).inputs)
    with pytest.raises(InvalidShape, match=r"\(3, 3, 3\).*\(6, 10, 8\)"):
        model.predict(cohort_of(np.zeros((1, 3, 3, 3), np.float32), np.zeros(1), np.zeros((1, 1))).inputs)
    lone = ResNet3d(width=1, depth=10, training=TrainingConfig(batch=1))
    with pytest.raises(InvalidShape, match="one place"):
        fitted(noise_cohort(4), recipe=lone)
    broken = np.zeros((1, *SHAPE), np.float32)
    broken[0, 2, 2, 2] = np.nan
    with pytest.raises(SourceFailed, match="slices 0 to 5"):
        model.predict(cohort_of(broken, np.zeros(1), np.zeros((1, 1))).inputs)


def test_settings_come_from_json_and_are_refused_by_name() -> None:
    recipe = ResNet3d.from_settings({"depth": 18, "training": {"epochs": 3, "betas": [0.8, 0.9]}})
    assert (recipe.depth, recipe.training.epochs, recipe.training.betas) == (18, 3, (0.8, 0.9))
    for settings, named in (
        ({"depth": 35}, "depth"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"layers": 3}, "layers"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"rate": "fast"}}, "training.rate"),
        ({"training": 3}, "training"),
    ):
        with pytest.raises(InvalidConfig) as error:
            ResNet3d.from_settings(settings)
        assert error.value.setting == named
