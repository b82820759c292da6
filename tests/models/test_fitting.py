"""Trains fitted to blocks and to more fibres than their rank: exactness, counts, what each is good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fields import Array, TrainField, body, random_train

from models.cpic.cross import Chooser, Sample, cross, leftward
from models.cpic.fit import combinations, train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, nested_samples, prefix_counts, random_start
from models.cpic.interpolate import interpolate
from models.errors import NonFinite
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.train import TensorTrain

LAYOUTS = {
    "tt": tt_layout((32, 32, 32), 16),
    "qtt": qtt_layout((32, 32, 32), 16, whole_features=True),
    "interleaved": qtt_layout((32, 32, 32), 16, "interleaved", whole_features=True),
    "mixed radix": qtt_layout((30, 45, 16), 10, whole_features=True),
}


def vectors(layout: Layout, train: TensorTrain) -> Sample:
    """A train whose last mode is the features as vectors at a spatial layout's keys."""

    def sample(keys: Array) -> torch.Tensor:
        return train.fibres_at(torch.from_numpy(layout.indices(keys.ravel()))).reshape(*keys.shape, -1)

    return sample


def fitted(
    sample: Sample, layout: Layout, size: int, rank: int | None, sweeps: int, seed: int = 0
) -> tuple[TensorTrain, ForwardSet, IndexSets]:
    sets = cross(sample, layout, random_start(layout, size, seed), rank=rank, sweeps=sweeps, seed=seed)
    forward = ForwardSet.of(layout, sets)
    return train_of(sample(forward.keys), forward, rank), forward, sets


def relative_error(train: TensorTrain, truth: TensorTrain) -> float:
    indices = torch.from_numpy(np.random.default_rng(99).integers(0, truth.modes, (5000, len(truth.modes))))
    error = train.at(indices) - truth.at(indices)
    return float(error.norm() / truth.at(indices).norm())


@pytest.mark.parametrize(("size", "rank", "sweeps"), [(8, 8, 2), (16, 8, 1), (12, 10, 2), (11, None, 2)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_trains_of_rank_8_are_recovered_from_their_vectors(
    name: str, size: int, rank: int | None, sweeps: int
) -> None:
    layout = LAYOUTS[name]
    for seed in range(20 if (size, sweeps) == (8, 2) else 4):
        truth = random_train(layout.modes, 8, seed)
        train, _, _ = fitted(vectors(layout.spatial(), truth), layout.spatial(), size, rank, sweeps, seed)
        assert train.modes == truth.modes
        assert max(train.ranks[: layout.spatial_modes - 1]) == 8
        assert relative_error(train, truth) <= 1e-11  # measured: 1.2e-13 at most


@pytest.mark.parametrize(("size", "sweeps"), [(16, 1), (16, 2)])
@pytest.mark.parametrize("layout", [tt_layout((32, 32, 32), 16), qtt_layout((32, 32, 32), 16)])
def test_trains_of_rank_8_are_recovered_from_oversampled_numbers(
    layout: Layout, size: int, sweeps: int
) -> None:
    for seed in range(10):
        truth = random_train(layout.modes, 8, seed)
        train, _, _ = fitted(TrainField(layout, truth), layout, size, 8, sweeps, seed)
        assert max(train.ranks) == 8
        assert relative_error(train, truth) <= 1e-11


@pytest.mark.parametrize(("size", "rank"), [(6, 6), (12, 6), (9, 4)])
@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_look_at_exactly_as_many_voxels_as_the_law_says(
    name: str, size: int, rank: int, sweeps: int
) -> None:
    layout = LAYOUTS[name].spatial()
    features = LAYOUTS[name].features
    sample = vectors(layout, random_train(LAYOUTS[name].modes, 12, 0))
    _, forward, sets = fitted(sample, layout, size, rank, sweeps)
    prefixes = [J.shape[-1] for J in sets.left]
    start = random_start(layout, size, 0).sizes
    assert sets.sizes == start
    assert tuple(prefixes) == prefix_counts(layout.modes, start, features, max(size, rank))
    assert any(p > q for p, q in zip(prefixes, sets.sizes, strict=True)) == (name != "tt")
    assert (forward.samples, len(forward.keys)) == nested_samples(layout.modes, prefixes, sets.sizes)
    assert forward.samples == sum(block.size for block in forward.blocks)
    for J, K in zip(sets.left, sets.right, strict=True):
        assert (len(np.unique(J)), len(np.unique(K))) == (len(J), len(K))


def test_prefixes_are_counted_by_what_stands_behind_them() -> None:
    assert prefix_counts((2,) * 6, (2, 4, 8, 4, 2)) == (2, 4, 8, 4, 2)
    assert prefix_counts((2,) * 6, (2, 4, 8, 4, 2), features=16) == (2, 4, 8, 8, 8)
    assert prefix_counts((2,) * 6, (2, 4, 8, 4, 2), features=3, size=8) == (2, 4, 8, 8, 6)
    assert prefix_counts((2,) * 6, (2, 4, 4, 4, 2), features=3, size=10) == (2, 4, 8, 10, 6)
    assert prefix_counts((7,), ()) == ()
    assert nested_samples((2, 3, 4), (2, 4)) == (2 * 2 + 2 * 3 * 4 + 4 * 4, 4 + 24 + 16 - 4 - 16)
    assert nested_samples((2, 3, 4), (2, 4), (2, 3)) == (4 + 18 + 16, 38 - 4 - 12)


def sigmoid_waves(
    size: int, features: int, *, bandwidth: float = 0.6, change: float = 0.0, whole: bool = True
) -> tuple[Layout, Sample]:
    """Per feature the sigmoid of three random plane waves over the unit cube, as a QTT of vectors or numbers.

    `change` moves each parameter by so much of itself.
    """
    generator, mover = np.random.default_rng(0), np.random.default_rng(1)

    def moved(parameter: Array) -> Array:
        return parameter * (1 + change * mover.normal(size=parameter.shape))

    waves = moved(generator.normal(size=(features, 3, 3))) * bandwidth / (size - 1)
    phases = moved(generator.uniform(0, 2 * np.pi, (features, 3)))
    amplitudes = moved(generator.normal(size=(features, 3)))
    layout = qtt_layout((size,) * 3, features, whole_features=whole)
    layout = layout.spatial() if whole else layout

    def sample(keys: Array) -> torch.Tensor:
        entries = layout.entries(keys.ravel())
        of = slice(None) if whole else entries[:, 3, None]
        angles = np.einsum("md,cjd->mcj" if whole else "md,mcjd->mcj", entries[:, :3], waves[of])
        values = 1 / (1 + np.exp(-(amplitudes[of] * np.sin(angles + phases[of])).sum(axis=2)))
        return torch.from_numpy(values).reshape(*keys.shape, *([features] if whole else []))

    return layout, sample


def centred_error(train: TensorTrain, sample: Sample, layout: Layout) -> float:
    """sqrt(mean (T - E)^2 / var E), of all features together, at 4,000 random keys."""
    keys = np.random.default_rng(5).integers(0, int(np.prod(layout.padded)), 4000)
    truth = sample(keys)
    found = train.fibres_at(torch.from_numpy(layout.indices(keys))).reshape(truth.shape)
    return float((found - truth).norm() / (truth - truth.mean(dim=0)).norm())


@pytest.mark.parametrize("seed", range(3))
def test_a_smooth_field_needs_few_voxels_and_one_half_sweep(seed: int) -> None:
    layout, sample = sigmoid_waves(256, 16)
    train, forward, _ = fitted(sample, layout, 10, 10, 1, seed)
    assert len(forward.keys) <= 2000
    assert centred_error(train, sample, layout) <= 0.08


@pytest.mark.parametrize("name", ["tt", "qtt"])
def test_rough_fields_are_fitted_better_than_interpolated(name: str) -> None:
    volume = body((32, 32, 32)) + 100 * np.random.default_rng(0).normal(size=(32, 32, 32))
    flat = torch.from_numpy(volume.ravel())
    layout = {"tt": tt_layout, "qtt": qtt_layout}[name]((32, 32, 32), 1)

    def sample(keys: Array) -> torch.Tensor:
        return flat[torch.from_numpy(keys)]

    errors = {
        size: np.median(
            [centred_error(fitted(sample, layout, size, 8, 2, s)[0], sample, layout) for s in range(5)]
        )
        for size in (8, 16)
    }
    assert errors[16] <= 0.8 * errors[8]


@pytest.mark.parametrize("half", ["right", "left"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_warm_half_sweep_in_either_direction_is_as_good_as_three_cold_sweeps(
    half: str, whole: bool
) -> None:
    layout, sample = sigmoid_waves(64, 8, bandwidth=1.5, whole=whole)
    _, changed = sigmoid_waves(64, 8, bandwidth=1.5, whole=whole, change=0.05)
    counted = [0]

    def counting(keys: Array) -> torch.Tensor:
        counted[0] += keys.size
        return changed(keys)

    def choose() -> Chooser:
        return Chooser(10, 1e-13, np.random.default_rng(0), lambda: None)

    def error(sets: IndexSets) -> float:
        forward = ForwardSet.of(layout, sets)
        return centred_error(train_of(changed(forward.keys), forward, 10), changed, layout)

    warm_errors, cold_errors = [], []
    for seed in range(4):
        before = cross(sample, layout, random_start(layout, 10, seed), sweeps=2, seed=seed)
        counted[0] = 0
        cold = cross(counting, layout, random_start(layout, 10, seed + 9), sweeps=3, seed=seed)
        cold_count, counted[0] = counted[0], 0
        if half == "right":
            warm = cross(counting, layout, before, sweeps=1, rank=10)
        else:
            warm = leftward(counting, layout, before, choose())
        assert counted[0] <= cold_count / 3
        warm_errors.append(error(warm))
        cold_errors.append(error(cold))
    assert np.median(warm_errors) <= (1.1 if half == "right" else 1.2) * np.median(cold_errors)
    assert np.median(cold_errors) < 0.5


def test_gradients_of_a_fit_are_exact_for_fixed_indices_and_combinations() -> None:
    layout = tt_layout((4, 4, 3), 2)
    sample = vectors(layout.spatial(), random_train(layout.modes, 8, 0))
    sets = cross(sample, layout.spatial(), random_start(layout.spatial(), 3, 0), rank=2)
    forward = ForwardSet.of(layout.spatial(), sets)
    values = sample(forward.keys).requires_grad_()
    fixed = combinations(values, forward, 2)
    probe = random_train(layout.modes, 3, 1)
    assert torch.autograd.gradcheck(lambda v: interpolate(v, forward, fixed).inner(probe), values)


def test_a_fit_is_the_least_squares_solution_at_its_prefixes() -> None:
    layout = tt_layout((1, 9, 40), 1)
    dense = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 40)))

    def sample(keys: Array) -> torch.Tensor:
        return dense.flatten()[torch.from_numpy(keys)]

    train, _, sets = fitted(sample, layout, 6, 3, 2)
    J, K = sets.left[0] // 40, sets.right[0]
    columns = dense[:, K]
    X = torch.linalg.svd(columns)[2][:3].T
    expected = columns @ X @ torch.linalg.lstsq((columns @ X)[J], dense[J]).solution
    assert torch.allclose(train.full(), expected, atol=1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_never_become_a_train(value: float) -> None:
    layout = LAYOUTS["mixed radix"]
    sample = vectors(layout.spatial(), random_train(layout.modes, 4, 0))
    _, forward, _ = fitted(sample, layout.spatial(), 4, 4, 1)
    values = sample(forward.keys)
    values[7, 3] = value
    for make in (lambda: train_of(values, forward), lambda: combinations(values, forward, 4)):
        with pytest.raises(NonFinite, match=r"samples must be finite, but the one at \(7, 3\)"):
            make()
