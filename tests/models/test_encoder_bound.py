"""Encoders of a bounded gain: the bound holds in every step of a training, and of what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from small_cohorts import Killed, KilledAt, Memory, cohort_of, r2, textured_scans
from torch import Tensor, nn

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.fibres import FibreConfig
from models.cpic.head import Head
from models.errors import InvalidConfig, InvalidShape
from models.learning.task import Task
from models.regressors import encoder_training
from models.regressors.cpic import Cpic
from models.regressors.cpic_ensemble import CpicEnsemble
from models.regressors.cpic_model import CpicModel
from models.regressors.encoder_bound import bounds_of, certified_bound
from models.regressors.encoders import EncoderConfig, ProjectionConfig, calibrated
from models.regressors.random_voxels import RandomVoxelsRegressor
from models.regressors.readouts import FibreReadoutConfig, VoxelReadoutConfig
from models.sttp.parametrizations import spectral_of
from models.training import Watch

CPU = torch.device("cpu")
SHAPE = (8, 8, 8)
FIBRES = FibreConfig(layout="tt", rank=2)
BOUNDED = EncoderConfig(hidden=(3, 4), features=2, spectral_bound=0.5)
RECIPE = Cpic(
    BOUNDED,
    starts=2,
    steps=6,
    batch=3,
    voxels=20,
    rate=1e-1,
    projected_steps=2,
    projected_rate=1e-1,
    projection=ProjectionConfig(count=2, anchors=6, fibres=FIBRES),
    perceptron=True,
    readout=FibreReadoutConfig(FIBRES, counts=(2,), poolings=(1,)),
)
SCANS, SHARES = textured_scans(6, 0, SHAPE)
COHORT = cohort_of(SCANS, 20 + 100 * SHARES)


def fitted(recipe: Cpic | RandomVoxelsRegressor = RECIPE, watch: Watch | None = None) -> CpicModel:
    return recipe.fit(COHORT, Task(), seed=0, device=CPU, watch=Watch() if watch is None else watch)


def norms(network: nn.Module) -> list[float]:
    """The largest singular value of each layer's matrix of outputs by inputs and kernel."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d | nn.Linear)]
    return [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1).double(), 2)) for layer in layers]


def in_a_file(model: CpicModel) -> tuple[dict[str, Any], dict[str, Any]]:
    return model.tensors(), json.loads(json.dumps(model.manifest(), allow_nan=False))


def test_the_bound_holds_on_every_step_of_encoder_and_perceptron(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    own = EncoderConfig.network

    def network(config: EncoderConfig, *how: Any) -> CpicEncoder:
        made.append(own(config, *how))
        return made[-1]  # type: ignore[return-value]

    def head(*how: Any, **settings: Any) -> Head:
        made.append(Head(*how, **settings))
        return made[-1]  # type: ignore[return-value]

    seen: list[list[float]] = []

    def watched(phase: str, done: int, total: int | None) -> None:
        if phase == "training":
            seen.append([norm for each in made if bounds_of(each) for norm in norms(each)])

    monkeypatch.setattr(EncoderConfig, "network", network)
    monkeypatch.setattr(encoder_training, "Head", head)
    fitted(watch=Watch(watched))
    assert [len(each) for each in seen] == [6] * 7 + [9] * 3
    assert all(abs(norm / 0.5 - 1) < 2e-5 for each in seen for norm in each)


def test_weights_move_under_the_bound_and_are_plain_when_they_stand_still() -> None:
    model, start = fitted(), BOUNDED.network(1, 0, CPU)
    assert bounds_of(start) == (0.5, 0.5, 0.5)
    assert all(spectral_of(layer) is None for layer in model.encoder.network.modules())
    assert not any(own.requires_grad for own in model.encoder.network.parameters())
    assert norms(model.encoder.network) == pytest.approx([0.5] * 3, rel=2e-5)
    weights = [layer.weight.detach() for layer in start.layers if isinstance(layer, nn.Conv3d)]
    plain = replace(BOUNDED, spectral_bound=None).network(1, 0, CPU)
    drawn = [layer.weight.detach() for layer in plain.layers if isinstance(layer, nn.Conv3d)]
    for bounded, free in zip(weights, drawn, strict=True):
        scale = 0.5 / torch.linalg.matrix_norm(free.flatten(1), 2)
        assert torch.allclose(bounded, scale * free, atol=1e-6)
    layers = model.encoder.network.layers
    learned = [layer.weight for layer in layers if isinstance(layer, nn.Conv3d)]
    for after, before in zip(learned, weights, strict=True):
        assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("intensity", [False, True])
def test_features_of_perturbed_cubes_are_within_the_certificate(sigmoid: bool, intensity: bool) -> None:
    config = replace(BOUNDED, sigmoid=sigmoid, intensity=intensity, spectral_bound=0.7)
    network = config.network(2, 3, CPU).double()
    scale = torch.linspace(0.5, 2, network.features, dtype=torch.float64)
    encoder = LearnedCpic(network, torch.zeros(network.features, dtype=torch.float64), scale)
    bound, generator = certified_bound(encoder), torch.Generator().manual_seed(0)
    boxes = torch.randn(4, 2, 11, 11, 11, generator=generator, dtype=torch.float64)
    for size in (1e-6, 1e-2, 1.0, 30.0):
        moves = size * torch.randn(boxes.shape, generator=generator, dtype=torch.float64)
        assert gain(encoder, boxes, moves) <= bound
    worst = torch.ones_like(boxes)
    for _ in range(12):
        worst = _steeper(encoder, boxes, worst)
    steepest = gain(encoder, boxes, 1e-3 * worst / worst.norm())
    assert 1.5 * gain(encoder, boxes, moves) < steepest <= bound


def gain(encoder: LearnedCpic, boxes: Tensor, moves: Tensor) -> float:
    """The largest of |E(x + d) - E(x)| / |d|."""
    with torch.no_grad():
        apart = (encoder.encoded(boxes + moves) - encoder.encoded(boxes)).flatten(1).norm(dim=1)
    return float((apart / moves.flatten(1).norm(dim=1)).max())


def _steeper(encoder: LearnedCpic, boxes: Tensor, moves: Tensor) -> Tensor:
    """A step of the power method on J^T J."""
    at = boxes.clone().requires_grad_()
    features = encoder.encoded(at)
    with torch.no_grad():
        along = encoder.encoded(boxes + 1e-5 * moves / moves.norm()) - features
    (back,) = torch.autograd.grad(features, at, along)
    return back


def test_the_certificate_is_the_product_of_layers_and_met_by_constant_kernels() -> None:
    config = EncoderConfig(hidden=(1,), features=1, intensity=False, spectral_bound=0.5)
    network = config.network(1, 0, CPU)
    bound = certified_bound(LearnedCpic(network))
    assert bound == pytest.approx((0.5 * sqrt(27)) ** 2, rel=1e-4)
    halved = LearnedCpic(network, torch.zeros(1), torch.full((1,), 2.0))
    assert certified_bound(halved) == pytest.approx(bound / 2)
    beside = LearnedCpic(replace(config, intensity=True).network(1, 0, CPU))
    assert certified_bound(beside) == pytest.approx(sqrt(bound**2 + 1), rel=1e-4)
    plain = replace(config, spectral_bound=None).network(1, 0, CPU).double()
    with torch.no_grad():
        for layer in plain.layers:
            if isinstance(layer, nn.Conv3d):
                layer.weight.fill_(0.5 / sqrt(27))
                assert layer.bias is not None
                layer.bias.fill_(1.0)
    flat = torch.ones(1, 1, 24, 24, 24, dtype=torch.float64)
    assert 0.7 * certified_bound(LearnedCpic(plain)) < gain(LearnedCpic(plain), 0 * flat, 0.1 * flat)


def test_manifest_and_certificate_say_the_bound_and_a_loaded_model_the_same() -> None:
    model = fitted()
    tensors, manifest = in_a_file(model)
    bound = certified_bound(model.encoder)
    assert (manifest["encoder"]["spectral_bound"], manifest["encoder_bound"]) == (0.5, bound)
    look = model.look(COHORT.inputs.scans[0], np.zeros(0))
    assert look.certificate is not None
    assert look.certificate["encoder_bound"] == bound
    again = RECIPE.load(tensors, manifest, Task(), CPU)
    assert in_a_file(again)[1] == manifest
    assert np.array_equal(again.predict(COHORT.inputs), model.predict(COHORT.inputs))


def test_without_a_bound_models_say_what_they_said() -> None:
    recipe = replace(RECIPE, encoder=replace(BOUNDED, spectral_bound=None))
    model = fitted(recipe)
    _, manifest = in_a_file(model)
    assert list(manifest["encoder"]) == ["hidden", "features", "negative_slope", "sigmoid", "intensity"]
    assert "encoder_bound" not in manifest
    look = model.look(COHORT.inputs.scans[0], np.zeros(0))
    assert look.certificate is not None
    assert "encoder_bound" not in look.certificate
    loose = calibrated(replace(BOUNDED, spectral_bound=None).network(1, 0, CPU), COHORT.inputs.scans, 0, CPU)
    assert certified_bound(loose) > 0


def test_other_recipes_take_it_and_go_on_after_kill_to_the_same_bits() -> None:
    recipe = RandomVoxelsRegressor(
        BOUNDED, starts=1, steps=6, batch=3, voxels=20, readout=VoxelReadoutConfig(40, 2, 1.0, (1,))
    )
    whole, kept = in_a_file(fitted(recipe)), Memory()
    with pytest.raises(Killed):
        fitted(recipe, Watch(KilledAt(2), kept))
    resumed = in_a_file(fitted(recipe, Watch(checkpoints=kept)))
    assert resumed[1] == whole[1]
    assert all(np.array_equal(array, whole[0][name]) for name, array in resumed[0].items())
    other = replace(recipe, encoder=replace(BOUNDED, spectral_bound=0.4))
    with pytest.raises(InvalidShape, match="another training"):
        fitted(other, Watch(checkpoints=kept))
    ensemble = CpicEnsemble(2, replace(RECIPE, projected_steps=0)).fit(
        COHORT, Task(), seed=0, device=CPU, watch=Watch()
    )
    assert all(own["encoder_bound"] > 0 for own in ensemble.manifest()["members"])


def test_a_bounded_encoder_learns_a_texture() -> None:
    scans, shares = textured_scans(20, 0, (10, 10, 10))
    encoder = EncoderConfig(hidden=(4, 4), features=1, spectral_bound=1.0)
    readout = FibreReadoutConfig(FibreConfig(layout="tt", rank=3), counts=(2,), poolings=(1,))
    recipe = Cpic(encoder, starts=1, steps=36, batch=5, voxels=60, rate=3e-2, readout=readout)
    model = recipe.fit(cohort_of(scans, shares), Task(), seed=0, device=CPU, watch=Watch())
    new, truth = textured_scans(16, 1, (10, 10, 10))
    assert r2(model.predict(cohort_of(new, truth).inputs)[:, 0], truth) > 0.7


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_bounds_that_are_none_are_refused_by_name(bound: float) -> None:
    with pytest.raises(InvalidConfig) as error:
        EncoderConfig(spectral_bound=bound)
    assert error.value.setting == "spectral_bound"
    with pytest.raises(InvalidConfig) as nested:
        Cpic.from_settings({"encoder": {"spectral_bound": "tight"}})
    assert nested.value.setting == "encoder.spectral_bound"
