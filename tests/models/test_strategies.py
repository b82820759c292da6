"""Sampling strategies: what they choose, what is made of it, and that a step needs no more than that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fields import ArraySource, body

from models.cpic.encoder import Identity, StandardisedCpic, random_cpic
from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.index_batching import index_batched
from models.cpic.moments import Pooling
from models.cpic.strategies import ByFibres, PooledFibres, Randomly, Strategy
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics

SHAPE = (20, 18, 24)
POOLING = Pooling("hat", 2)
STRATEGIES: dict[str, Strategy] = {
    "random": Randomly(600, POOLING, self_normalised=True),
    "tt": ByFibres(FibreConfig("tt", rank=4), POOLING),
    "qtt": ByFibres(FibreConfig("qtt", rank=6), POOLING),
    "interpolated": ByFibres(FibreConfig("qtt", rank=6, oversampling=1), POOLING),
    "scalar": ByFibres(FibreConfig("qtt", sampling="scalar", rank=5, oversampling=1), POOLING),
    "scalar, oversampled": ByFibres(FibreConfig("tt", sampling="scalar", rank=4), POOLING),
    "to a tolerance": ByFibres(FibreConfig("qtt", rank=8, tolerance=1e-2), POOLING),
}


def encoded(features: int = 3) -> EncodedVoxels:
    volume = body(SHAPE)
    statistics = IntensityStatistics(
        float(volume.min()), float(volume.max()), float(volume.mean()), float(volume.std())
    )
    encoder = random_cpic(1, features, 0, statistics, torch.device("cpu"))
    return EncodedVoxels(ArraySource(volume), encoder, torch.device("cpu"))


def smooth() -> EncodedVoxels:
    """Three channels, as they are."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    volume = np.stack([np.sin(2 * z + c * x) + np.cos(y * (c + 1)) for c in range(3)])
    encoder = Identity(3, IntensityStatistics(float(volume.min()), float(volume.max()), 0.0, 1.0))
    return EncodedVoxels(ArraySource(volume), encoder, torch.device("cpu"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_encodes_the_chosen_voxels_and_differentiates_their_moments(name: str) -> None:
    volume = encoded()
    chosen = STRATEGIES[name].choose(volume, 0)
    assert (np.diff(chosen.voxels) > 0).all()
    before = len(volume)
    (features,) = index_batched([volume], [chosen.voxels])
    assert name == "random" or len(volume) == before  # looking for fibres has encoded all of them
    moments = chosen.moments(features)
    assert moments.shape == (8 * 3,)
    moments.square().sum().backward()
    network = volume.scan.encoder.network
    assert network is not None
    gradients = [weight.grad for weight in network.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_moments_are_near_those_of_all_voxels(name: str) -> None:
    volume = smooth()
    everything = Randomly(int(np.prod(SHAPE)), POOLING).choose(volume, 0)
    truth = everything.moments(volume.features(everything.voxels))
    chosen = STRATEGIES[name].choose(volume, 0)
    found = chosen.moments(volume.features(chosen.voxels))
    assert len(chosen.voxels) < len(everything.voxels)
    assert float((found - truth).abs().max()) <= (0.3 if name == "random" else 0.05)


def test_earlier_fibres_are_refreshed_by_one_half_sweep_back_and_forth() -> None:
    volume, strategy = encoded(), STRATEGIES["qtt"]
    cold = strategy.choose(volume, 0)
    assert isinstance(cold, PooledFibres)
    assert isinstance(volume.scan.encoder, StandardisedCpic)
    with torch.no_grad():
        for weight in volume.scan.encoder.network.parameters():
            weight.mul_(1.02)
    back = strategy.choose(volume, 1, cold)
    assert isinstance(back, PooledFibres)
    assert len(volume) <= 1.2 * len(back.voxels)  # little beside its own forward set was encoded
    assert (cold.fibres.rightward, back.fibres.rightward) == (True, False)
    assert all(
        np.array_equal(a, b) for a, b in zip(cold.fibres.sets.left, back.fibres.sets.left, strict=True)
    )
    forth = strategy.choose(volume, 2, back)
    assert isinstance(forth, PooledFibres)
    assert forth.fibres.rightward
    assert all(
        np.array_equal(a, b) for a, b in zip(back.fibres.sets.right, forth.fibres.sets.right, strict=True)
    )


def test_the_same_seed_chooses_the_same_voxels_and_makes_the_same_train() -> None:
    chosen = [Fibres.choose(encoded(), FibreConfig(rank=5), seed) for seed in (3, 3, 4)]
    assert np.array_equal(chosen[0].voxels, chosen[1].voxels)
    assert not np.array_equal(chosen[0].voxels, chosen[2].voxels)
    volume = encoded()
    trains = [each.train(volume.features(each.voxels)) for each in chosen[:2]]
    assert all(torch.equal(a, b) for a, b in zip(trains[0].cores, trains[1].cores, strict=True))


def test_fibres_of_another_shape_are_refused() -> None:
    fibres = Fibres.choose(encoded(), FibreConfig(rank=3), 0)
    volume = encoded()
    other = EncodedVoxels(ArraySource(body((8, 8, 8))), volume.scan.encoder, torch.device("cpu"))
    with pytest.raises(InvalidShape, match=r"\(20, 18, 24\) do not fit \(8, 8, 8\)"):
        fibres.refreshed(other, 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layout", "tucker"),
        ("order", "backwards"),
        ("sampling", "tensor"),
        ("rank", 0),
        ("sweeps", 0),
        ("oversampling", 0.5),
        ("tolerance", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_named(setting: str, value: object) -> None:
    with pytest.raises(InvalidConfig, match=setting):
        FibreConfig(**{setting: value})  # type: ignore[arg-type]
