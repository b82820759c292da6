"""Residual networks with spectral convolutions from the start: small, bounded, seeded, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array
from safetensors.numpy import save_file
from small_cohorts import Killed, KilledAt, Memory, cohort_of, r2, textured_scans
from torch import nn

from models.compression.structure import fill_, structure_of
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort
from models.learning.losses import losses
from models.learning.saved import part
from models.learning.task import Task
from models.regressors import REGRESSORS
from models.regressors.base import Extent
from models.regressors.compressed import compressed_model, planned, tuned
from models.regressors.neural import Answers, RowLearner, Scaling
from models.regressors.resnet import ResNet
from models.regressors.resnet3d import ResNet3d, WholeSight
from models.regressors.resnet3d_spectral import SpectralResNet3d, SttpResNet3d, SvdpResNet3d
from models.rsdtr.candidates import RingConfig
from models.sttp.parametrizations import originals, spectral_of
from models.sttp.shapes import sttp_parameters, svdp_parameters
from models.sttp.spectrum import d_optimal
from models.training import Step, TrainingConfig, Watch

CPU = torch.device("cpu")
SHAPE = (6, 10, 8)
QUICK = TrainingConfig(epochs=2, batch=3, rate=1e-2, checkpoint_steps=1)
KINDS: tuple[type[SpectralResNet3d], ...] = (SvdpResNet3d, SttpResNet3d)
each_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind: type[SpectralResNet3d], **settings: Any) -> SpectralResNet3d:
    return kind(**{"width": 4, "depth": 10, "training": QUICK, "share": 0.2, **settings})


def noise_cohort(count: int = 7) -> Cohort:
    rng = np.random.default_rng(0)
    scans = rng.normal(size=(count, *SHAPE)).astype(np.float32)
    return cohort_of(scans, rng.normal(50, 9, count), rng.normal(size=(count, 1)))


def fitted(recipe: ResNet3d, cohort: Cohort | None = None, **how: Any) -> Any:
    made = noise_cohort() if cohort is None else cohort
    return recipe.fit(made, Task(), seed=how.get("seed", 0), device=CPU, watch=how.get("watch", Watch()))


def network(recipe: SpectralResNet3d, channels: int = 1) -> ResNet:
    return recipe._network(WholeSight(SHAPE, channels, CPU), 1, Task(), 0)


def spectral_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if spectral_of(layer) is not None}


def same(first: dict[str, Array], second: dict[str, Array]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@each_kind
def test_all_convolutions_but_the_stem_are_spectral_and_the_head_is_not(kind: type[SpectralResNet3d]) -> None:
    made, dense = network(small(kind, depth=18)), ResNet(1, 1, 0, width=4, depth=18)
    convolutions = {name for name, layer in dense.named_modules() if isinstance(layer, nn.Conv3d)}
    assert set(spectral_layers(made)) == convolutions - {"stem.conv"}
    assert REGRESSORS[kind.name] is kind


@pytest.mark.parametrize("depth", [10, 34])
@pytest.mark.parametrize("spectrum", ["learned", "constant"])
def test_their_parameters_are_the_papers_counts(depth: int, spectrum: str) -> None:
    constant = spectrum == "constant"
    for kind in KINDS:
        made = network(small(kind, depth=depth, spectrum=spectrum, rank=3))
        for layer in spectral_layers(made).values():
            assert isinstance(layer, nn.Conv3d)
            o, i, size = layer.out_channels, layer.in_channels, layer.kernel_size[0] ** 3
            twos = [2] * (o.bit_length() - 1), [2] * (i.bit_length() - 1) + [size] * (size > 1)
            svdp = svdp_parameters(o, i * size, 3, constant=constant)
            count = svdp if kind is SvdpResNet3d else sttp_parameters(*twos, 3, constant=constant)
            assert sum(own.numel() for own in layer.parameters()) == count


@each_kind
def test_a_share_is_met_by_the_largest_ranks_that_have_it(kind: type[SpectralResNet3d]) -> None:
    for share in (0.15, 0.25):
        made = network(small(kind, width=8, share=share))
        dense = [layer.weight.numel() for layer in spectral_layers(made).values()]  # type: ignore[operator]
        found = [sum(own.numel() for own in layer.parameters()) for layer in spectral_layers(made).values()]
        assert 0.8 * share * sum(dense) < sum(found) <= share * sum(dense)
    with pytest.raises(InvalidConfig, match="which rank 1 has") as error:
        small(kind, share=1e-4)
    assert error.value.setting == "share"


@pytest.mark.parametrize("spectrum", ["learned", "constant"])
@each_kind
def test_the_largest_singular_value_is_one_after_a_training(
    kind: type[SpectralResNet3d], spectrum: str
) -> None:
    recipe = small(kind, spectrum=spectrum, training=replace(QUICK, rate=1e-1, epochs=3))
    made = fitted(recipe).network
    moved = 0.0
    for layer in spectral_layers(made).values():
        assert isinstance(layer.weight, torch.Tensor)
        found = torch.linalg.svdvals(layer.weight.detach().flatten(1).double())
        spectral = spectral_of(layer)
        assert spectral is not None
        kept = found[: spectral.layout.width]
        assert abs(float(kept[0]) - 1) < 2e-5
        moved = max(moved, float((kept - 1).abs().max()))
    assert (moved < 2e-5) == (spectrum == "constant")


@each_kind
def test_weights_are_drawn_from_the_seed_alone(kind: type[SpectralResNet3d]) -> None:
    torch.manual_seed(1)
    state, numbers = torch.random.get_rng_state(), repr(np.random.get_state())
    first, again, other = (fitted(small(kind), seed=seed).tensors() for seed in (4, 4, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert numbers == repr(np.random.get_state())
    assert same(first, again)
    frames = [name for name in first if name.endswith("weight.inputs")]
    assert len(frames) == 11
    assert all(np.abs(first[name] - other[name]).max() > 0 for name in frames if first[name].size)


@pytest.mark.parametrize("kind", [SvdpResNet3d, pytest.param(SttpResNet3d, marks=pytest.mark.slow)])
def test_it_learns_a_texture_with_a_fraction_of_the_parameters(kind: type[SpectralResNet3d]) -> None:
    recipe = kind(width=4, depth=10, training=TrainingConfig(epochs=10, batch=8, rate=3e-2), share=0.2)
    scans, shares = textured_scans(48, 0, (8, 16, 16))
    model = fitted(recipe, cohort_of(scans, 100 * shares + 7))
    scans, shares = textured_scans(24, 1, (8, 16, 16))
    assert r2(model.predict(cohort_of(scans, shares).inputs)[:, 0], 100 * shares + 7) > 0.7
    dense = sum(own.numel() for own in ResNet(1, 1, 0, width=4, depth=10).parameters())
    assert 4 * model.manifest()["parameters"] < dense


def test_regularised_spectra_join_the_loss_by_the_d_optimal_penalty() -> None:
    cohort, told = noise_cohort(3), []
    look = [torch.randn(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0))]
    for spectrum in ("learned", "regularised"):
        made = network(small(SvdpResNet3d, spectrum=spectrum))
        values = [originals(layer)[2] for layer in spectral_layers(made).values()]
        with torch.no_grad():
            for layer in values:
                layer.copy_(torch.linspace(1, 0.2, layer.numel()).reshape(layer.shape))
        answers, scaling = Answers.of(Task(), cohort.targets), Scaling.of(cohort.inputs.covariates)
        beside = scaling(cohort.inputs.covariates)
        learner = RowLearner(made, cohort, answers, beside, lambda scans: look[0][scans], CPU)
        loss = learner.loss(np.arange(3), Step(0, 0, 0))
        outputs = made(look[0], torch.from_numpy(beside).float(), torch.arange(3))
        plain = losses(outputs, torch.from_numpy(answers.scaled(cohort.targets)).float(), Task()).mean()
        told.append(float((loss - plain).detach()))
    assert told[0] == 0
    assert told[1] == pytest.approx(float(d_optimal(values).detach()), rel=1e-5)
    assert told[1] > 0.1


@each_kind
def test_a_killed_training_goes_on_to_the_same_bits(kind: type[SpectralResNet3d]) -> None:
    recipe, kept = small(kind, spectrum="regularised"), Memory()
    with pytest.raises(Killed):
        fitted(recipe, watch=Watch(KilledAt(3), kept))
    assert same(fitted(recipe, watch=Watch(checkpoints=kept)).tensors(), (whole := fitted(recipe)).tensors())
    assert whole.manifest() == fitted(recipe).manifest()
    with pytest.raises(InvalidShape, match="another training"):
        fitted(replace(recipe, spectrum="learned"), watch=Watch(checkpoints=kept))


def test_a_fresh_process_loads_it_and_answers_alike(tmp_path: Path) -> None:
    recipe = small(SttpResNet3d)
    model, cohort = fitted(recipe), noise_cohort()
    save_file(model.tensors(), tmp_path / "model.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps(model.manifest()))
    scans = np.stack([scan.volume for scan in cohort.inputs.scans])  # type: ignore[attr-defined]
    np.savez(
        tmp_path / "asked.npz",
        scans=scans,
        covariates=cohort.inputs.covariates,
        told=model.predict(cohort.inputs),
    )
    program = (
        "import json, sys, numpy as np, torch\n"
        "from safetensors.numpy import load_file\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from small_cohorts import cohort_of\n"
        "from models.learning.task import Task\n"
        "from models.regressors import REGRESSORS\n"
        "tensors = load_file(sys.argv[1] + '/model.safetensors')\n"
        "manifest = json.load(open(sys.argv[1] + '/manifest.json'))\n"
        "recipe = REGRESSORS[sys.argv[3]](width=4, depth=10, share=0.2)\n"
        "model = recipe.load(tensors, manifest, Task(), torch.device('cpu'))\n"
        "asked = np.load(sys.argv[1] + '/asked.npz')\n"
        "inputs = cohort_of(asked['scans'], np.zeros(7), asked['covariates']).inputs\n"
        "assert np.array_equal(model.predict(inputs), asked['told'])\n"
        "assert model.manifest() == manifest\n"
        "print('same')\n"
    )
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), here, SttpResNet3d.name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "same\n", run.stderr


def test_a_model_of_other_ranks_is_refused_and_a_dense_network_takes_it() -> None:
    model = fitted(small(SvdpResNet3d, rank=2))
    with pytest.raises(InvalidShape, match="rank of"):
        small(SvdpResNet3d, rank=1).load(model.tensors(), model.manifest(), Task(), CPU)
    plain = ResNet(1, 1, 9, width=4, depth=10, covariates=1)
    told = json.loads(json.dumps(model.manifest()["structure"]))
    tensors = {name: torch.from_numpy(array) for name, array in part("network", model.tensors()).items()}
    fill_(plain, tensors, told)
    assert set(spectral_layers(plain)) == set(spectral_layers(model.network))
    assert structure_of(plain) == structure_of(model.network)


def test_it_descends_further_and_has_no_layer_that_rings_take() -> None:
    model, cohort = fitted(small(SvdpResNet3d)), noise_cohort()
    further = tuned(model, cohort, QUICK, seed=1, watch=Watch())
    assert further.manifest()["parameters"] == model.manifest()["parameters"]
    assert not same(further.tensors(), model.tensors())
    plan = planned(model, RingConfig(0.5), cohort.inputs, Watch())
    assert not plan.forms
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert {reasons.pop("stem.conv"), reasons.pop("outputs")} == {"stem", "head"}
    assert set(reasons.values()) == {"its weight is parametrised already"}
    kept = compressed_model(model, plan, cohort.inputs, Watch(), batch=3)
    assert kept.manifest()["structure"] == model.manifest()["structure"]


@pytest.mark.parametrize(("channels", "width", "depth"), [(1, 4, 34), (3, 8, 10)])
@each_kind
def test_weights_are_counted_without_the_network(
    kind: type[SpectralResNet3d], channels: int, width: int, depth: int
) -> None:
    recipe = small(kind, width=width, depth=depth)
    made = network(recipe, channels)
    inner = sum(own.numel() for own in made.parameters()) - sum(
        own.numel() for own in made.outputs.parameters()
    )
    assert recipe._sizes(Extent(SHAPE, channels, 1, 1, 1)).weights == inner


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet3d-svdp", "resnet3d-sttp"])
def test_a_training_holds_no_more_than_it_says(name: str) -> None:
    """The peak of a process that trains the whole network for a step, over that after a tiny one."""
    program = (
        "import sys, numpy as np, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from benchmarks.memory import peak_rss_mib\n"
        "from small_cohorts import cohort_of\n"
        "from models.learning.task import Task\n"
        "from models.regressors import REGRESSORS\n"
        "from models.regressors.base import Extent\n"
        "from models.training import TrainingConfig, Watch\n"
        "def peak(shape, **settings):\n"
        "    recipe = REGRESSORS[sys.argv[2]](training=TrainingConfig(epochs=1, batch=4), **settings)\n"
        "    scans = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)\n"
        "    cohort = cohort_of(scans, np.arange(4.0))\n"
        "    recipe.fit(cohort, Task(), seed=0, device=torch.device('cpu'), watch=Watch())\n"
        "    told = recipe.training_bytes(Extent(shape, 1, 4, 4, 0))\n"
        "    return round(peak_rss_mib() * 2**20), told\n"
        "before, _ = peak((8, 8, 8), width=4, depth=10, share=0.2)\n"
        "after, told = peak((64, 64, 64))\n"
        "print(after - before, told)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), name],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    taken, told = map(int, run.stdout.split())
    assert told / 2 < taken < told


def test_settings_are_refused_by_name() -> None:
    recipe = SttpResNet3d.from_settings({"rank": 8, "spectrum": "regularised", "training": {"epochs": 3}})
    assert (recipe.rank, recipe.spectrum, recipe.training.weight_decay) == (8, "regularised", 0.0)
    for settings, named in (
        ({"rank": 0}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": "full"}, "rank"),
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share"),
        ({"spectrum": "flat"}, "spectrum"),
        ({"depth": 35}, "depth"),
        ({"bound": 1.0}, "bound"),
    ):
        with pytest.raises(InvalidConfig) as error:
            SvdpResNet3d.from_settings(settings)
        assert error.value.setting == named
