"""Pooled moments of trains, and their estimation from random voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fields import random_train
from torch import Tensor

from models.cpic import moments as moments_module
from models.cpic.moments import FUNCTIONS, Pooling, pooled_moments, sampled_moments
from models.cpic.random_voxels import RandomVoxels, draw
from models.cpic.strategies import Chosen
from models.errors import InvalidConfig, InvalidShape
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.rounding import tt_svd
from models.tt.train import TensorTrain, stacked

SHAPES = [((4, 4, 4), 2), ((6, 5, 9), 3), ((7, 1, 11), 7), ((1, 1, 1), 1), ((1, 1, 13), 7), ((1, 14, 3), 1)]
MAKERS = {
    "tt": tt_layout,
    "sequential": qtt_layout,
    "interleaved": lambda shape, features: qtt_layout(shape, features, "interleaved"),
    "whole features": lambda shape, features: qtt_layout(shape, features, whole_features=True),
}


def trains_of(layout: Layout, count: int = 3, rank: int = 4) -> TensorTrain:
    return stacked([random_train(layout.modes, rank, seed) for seed in range(count)])


def dense_values(trains: TensorTrain, layout: Layout) -> Tensor:
    """T(v, c) at all real voxels: (K, V, features)."""
    entries = np.indices(layout.shape).reshape(4, -1).T
    indices = torch.from_numpy(layout.indices(layout.keys_of(entries)))
    return trains.at(indices).reshape(len(trains.cores[0]), layout.voxels, layout.features)


def dense_moments(trains: TensorTrain, layout: Layout, pooling: Pooling) -> Tensor:
    weights = torch.from_numpy(pooling.at(np.arange(layout.voxels), layout.shape[:3]))
    return weights.T @ dense_values(trains, layout) / layout.voxels


@pytest.mark.parametrize("functions", FUNCTIONS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("shape", "features"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_moments_are_those_of_the_dense_field(
    functions: str, maker: str, shape: tuple[int, int, int], features: int, count: int
) -> None:
    layout, pooling = MAKERS[maker](shape, features), Pooling(functions, count)
    trains = trains_of(layout)
    moments = pooled_moments(trains, layout, pooling)
    expected = dense_moments(trains, layout, pooling)
    assert moments.shape == (3, count**3, features)
    assert torch.allclose(moments, expected, rtol=0, atol=1e-12 * float(trains.norm().max()))
    assert torch.allclose(pooled_moments(trains[1], layout, pooling), expected[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("functions", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_functions_have_mean_1_are_never_zero_and_share_the_axis(
    functions: str, size: int, count: int
) -> None:
    weights = Pooling(functions, count).on_axis(size)
    assert weights.shape == (size, count)
    assert np.allclose(weights.mean(axis=0), 1, rtol=0, atol=1e-12)
    assert weights.min() >= 0
    integrals = FUNCTIONS[functions](np.array([0.0, 0.3, 1.0]), count)
    assert np.allclose(integrals[0], 0, atol=1e-15)
    assert np.allclose(integrals.sum(axis=1), [0, 0.3, 1])  # together they are 1 everywhere


def test_hats_are_piecewise_linear_and_blocks_are_parts() -> None:
    hats, blocks = Pooling("hat", 3).on_axis(8), Pooling("block", 3).on_axis(6)
    assert np.allclose(hats[:, 0], [3.5, 2.5, 1.5, 0.5, 0, 0, 0, 0])
    assert np.allclose(hats[:, 1], [0.25, 0.75, 1.25, 1.75, 1.75, 1.25, 0.75, 0.25])
    assert np.allclose(hats[:, 2], hats[::-1, 0])
    assert np.allclose(blocks, 3 * np.repeat(np.eye(3), 2, axis=0))
    assert np.allclose(Pooling("block", 2).on_axis(3)[:, 0], [2, 1, 0])


def test_products_are_ordered_z_y_x() -> None:
    weights = Pooling("block", 2).at(np.arange(2 * 4 * 6), (2, 4, 6)).reshape(2, 4, 6, 2, 2, 2)
    assert weights[0, 3, 0, 0, 1, 0] == 8
    assert np.count_nonzero(weights[0, 3, 0]) == 1


@pytest.mark.parametrize("maker", MAKERS)
def test_a_constant_is_the_constant_in_every_moment_and_padding_weighs_nothing(maker: str) -> None:
    layout = MAKERS[maker]((7, 5, 11), 3)
    inside = (layout.entries(np.arange(np.prod(layout.padded))) == _unclamped(layout)).all(axis=1)
    indices = layout.indices(np.arange(np.prod(layout.padded)))
    field = torch.zeros(layout.modes, dtype=torch.float64)
    field[tuple(indices.T)] = torch.from_numpy(np.where(inside, 2.5, 1e6))
    moments = pooled_moments(tt_svd(field, eps=1e-15), layout, Pooling("hat", 3))
    assert torch.allclose(moments, torch.full_like(moments, 2.5), rtol=0, atol=1e-6)


def _unclamped(layout: Layout) -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(np.prod(layout.padded)), layout.padded), axis=-1)


@pytest.mark.parametrize("maker", MAKERS)
def test_moments_have_the_right_gradient(maker: str) -> None:
    layout = MAKERS[maker]((4, 3, 2), 2)
    cores = [core.clone().requires_grad_() for core in trains_of(layout, 2, 2).cores]
    assert torch.autograd.gradcheck(
        lambda *cores: pooled_moments(TensorTrain(cores), layout, Pooling("hat", 2)), cores
    )


def test_moments_in_portions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = qtt_layout((6, 5, 9), 3, "interleaved")
    trains = trains_of(layout, 5)
    whole = pooled_moments(trains, layout, Pooling())
    monkeypatch.setattr(moments_module, "PORTION_NUMBERS", 1)
    assert torch.allclose(pooled_moments(trains, layout, Pooling()), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
def test_volumes_of_any_size_are_contracted(order: str) -> None:
    layout = qtt_layout((8192, 8192, 8192), 16, order)
    ones = TensorTrain(tuple(torch.ones(1, n, 1, dtype=torch.float64) for n in layout.modes))
    moments = pooled_moments(ones, layout, Pooling("hat", 3))
    assert torch.allclose(moments, torch.ones(27, 16, dtype=torch.float64), rtol=0, atol=1e-10)


def test_what_has_no_moments_is_refused() -> None:
    layout = qtt_layout((4, 4, 4), 2)
    with pytest.raises(InvalidShape, match="not of the layout's modes"):
        pooled_moments(random_train((4, 4), 2, 0), layout, Pooling())
    with pytest.raises(InvalidShape, match="features come last"):
        pooled_moments(random_train(layout.modes, 2, 0), layout.mirrored(), Pooling())
    with pytest.raises(InvalidConfig, match="functions = 'sinc': must be one of hat, block"):
        Pooling("sinc")
    with pytest.raises(InvalidConfig, match="count = 0"):
        Pooling("hat", 0)


FIELD_SHAPE = (6, 5, 9)
FIELD = torch.randn(270, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(dim=0)


def exact(pooling: Pooling) -> Tensor:
    return torch.from_numpy(pooling.at(np.arange(270), FIELD_SHAPE)).T @ FIELD / 270


def estimates(pooling: Pooling, count: int, seeds: range, strata: int = 1) -> Tensor:
    drawn = [RandomVoxels.drawn(FIELD_SHAPE, count, seed, pooling, strata=strata) for seed in seeds]
    return torch.stack([each.moments(FIELD[each.voxels]) for each in drawn])


@pytest.mark.parametrize("functions", FUNCTIONS)
@pytest.mark.parametrize("strata", [1, 2, 4])
def test_estimates_are_unbiased(functions: str, strata: int) -> None:
    pooling, repeats = Pooling(functions, 2), 1000
    found = estimates(pooling, 65, range(repeats), strata)
    standard_errors = found.std(dim=0) / repeats**0.5
    assert bool(((found.mean(dim=0) - exact(pooling).flatten()).abs() < 4 * standard_errors).all())


def test_the_variance_falls_as_one_over_the_count_and_with_what_is_left() -> None:
    pooling = Pooling("hat", 2)
    few, many = (estimates(pooling, m, range(1500)).var(dim=0) for m in (10, 90))
    law = (90 * (1 - 10 / 270)) / (10 * (1 - 90 / 270))  # without replacement: (1 - m / V) / m
    assert torch.allclose(few / many, torch.full_like(few, law), rtol=0.2)
    assert bool(
        (
            estimates(pooling, 64, range(300), 4).var(dim=0) < estimates(pooling, 64, range(300)).var(dim=0)
        ).all()
    )


@pytest.mark.parametrize("self_normalised", [False, True])
@pytest.mark.parametrize("strata", [1, 3])
def test_all_voxels_give_the_moments_exactly(self_normalised: bool, strata: int) -> None:
    pooling = Pooling("hat", 3)
    chosen: Chosen = RandomVoxels.drawn(
        FIELD_SHAPE, 10_000, 0, pooling, strata=strata, self_normalised=self_normalised
    )
    assert np.array_equal(chosen.voxels, np.arange(270))
    assert torch.allclose(chosen.moments(FIELD[chosen.voxels]), exact(pooling).flatten(), rtol=1e-12)


def test_self_normalised_estimates_are_exact_for_constants_and_bear_empty_blocks() -> None:
    chosen = RandomVoxels.drawn(FIELD_SHAPE, 3, 0, Pooling("block", 2), self_normalised=True)
    constant = torch.full((3, 2), 1.5, dtype=torch.float64)
    assert torch.allclose(chosen.moments(constant), torch.full((16,), 1.5, dtype=torch.float64))
    assert np.count_nonzero(chosen.weights.sum(axis=0) == 0) > 0
    values = FIELD[chosen.voxels].requires_grad_()
    empty = torch.from_numpy(chosen.weights.sum(axis=0) == 0)
    estimate = chosen.moments(values).reshape(8, 2)
    assert torch.allclose(estimate[empty], values.mean(dim=0).expand(int(empty.sum()), 2))
    (gradient,) = torch.autograd.grad(estimate.sum(), values)
    assert bool(gradient.isfinite().all())


def test_estimates_have_the_right_gradient_and_take_float32() -> None:
    weights, shares = FIELD[4:36].reshape(4, 16)[:, :8].abs(), torch.full((4,), 0.25, dtype=torch.float64)
    values = FIELD[:4].clone().requires_grad_()
    for self_normalised in (False, True):
        assert torch.autograd.gradcheck(
            lambda v, form=self_normalised: sampled_moments(v, weights, shares, self_normalised=form), values
        )
    assert sampled_moments(values.float(), weights, shares).dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "strata"), [((6, 5, 9), 1), ((6, 5, 9), 2), ((1, 40, 3), 4), ((8192,) * 3, 3)]
)
def test_drawn_voxels_are_distinct_ascending_and_of_the_seed(
    shape: tuple[int, int, int], strata: int
) -> None:
    state = np.random.get_state()[1].copy()
    voxels, shares = draw(shape, 100, 5, strata=strata)
    assert np.array_equal(state, np.random.get_state()[1])
    assert voxels.dtype == np.int64
    assert bool((np.diff(voxels) > 0).all())
    assert 0 <= voxels[0] <= voxels[-1] < np.prod(shape, dtype=np.int64)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert np.array_equal(voxels, draw(shape, 100, 5, strata=strata)[0])
    assert not np.array_equal(voxels, draw(shape, 100, 6, strata=strata)[0])


def test_every_stratum_is_seen() -> None:
    voxels, _ = draw((6, 6, 6), 27, 0, strata=3)
    blocks = np.stack(np.unravel_index(voxels, (6, 6, 6)), axis=-1) // 2
    assert len(np.unique(blocks, axis=0)) == 27
    with pytest.raises(InvalidConfig, match="count = 26: must be at least 27, one voxel per stratum"):
        draw((6, 6, 6), 26, 0, strata=3)
    with pytest.raises(InvalidConfig, match="strata = 0"):
        draw((6, 6, 6), 26, 0, strata=0)
