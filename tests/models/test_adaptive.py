"""Ranks found for a tolerance, and errors looked for: what cross-approximation cannot see by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, TrainField, random_train

from models.cpic.adaptive import Adapted, AdaptiveConfig, adaptive_cross, most_samples
from models.cpic.cross import Sample, cross
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, random_start
from models.cpic.interpolate import interpolate
from models.errors import InvalidConfig, InvalidShape, NonFiniteSample
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.train import TensorTrain

DIGITS = Layout((100, 100, 100, 1), (100, 100, 100, 1), tuple(10**k for k in reversed(range(6))), (10,) * 6)
"""Six modes of 10."""


class Counted:
    """A field that counts the entries it is asked for, with repetition."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self.samples = sample, 0

    def __call__(self, keys: Array) -> torch.Tensor:
        self.samples += keys.size
        return self.sample(keys)


def adapt(sample: Sample, layout: Layout, seed: int = 0, rank: int = 2, **settings: Any) -> Adapted:
    start = random_start(layout, rank, seed)
    return adaptive_cross(sample, layout, start, AdaptiveConfig(**settings), seed=seed)


def relative(train: TensorTrain, truth: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(train.full() - truth) / torch.linalg.vector_norm(truth))


def everything(layout: Layout, sample: Sample) -> torch.Tensor:
    """Every entry of a layout whose keys run through its modes in order."""
    grid = np.indices(layout.modes).reshape(len(layout.modes), -1).T
    return sample(layout.keys(grid)).reshape(*layout.modes, *([-1] if layout.features == 1 else []))


def with_ranks(modes: tuple[int, ...], ranks: tuple[int, ...], seed: int) -> TensorTrain:
    generator = torch.Generator().manual_seed(seed)
    bonds = (1, *ranks, 1)
    return TensorTrain(
        tuple(
            torch.randn(bonds[k], n, bonds[k + 1], generator=generator, dtype=torch.float64)
            for k, n in enumerate(modes)
        )
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        (tt_layout((12, 11, 10), 9), (3, 7, 5)),
        (tt_layout((12, 11, 10), 9), (2, 2, 9)),
        (qtt_layout((8, 8, 8), 4), (2, 4, 3, 5, 6, 5, 7, 6, 4, 2)),
    ],
)
def test_the_exact_ranks_of_random_trains_are_found(
    layout: Layout, ranks: tuple[int, ...], seed: int
) -> None:
    train = with_ranks(layout.modes, ranks, seed)
    found = adapt(TrainField(layout, train), layout, seed, tolerance=1e-9)
    assert found.converged
    assert found.train.ranks == ranks
    assert found.sets.sizes == ranks
    assert relative(found.train, train.full()) <= 1e-12


def test_only_the_bond_that_is_hard_grows() -> None:
    layout = qtt_layout((16, 16, 16), 4)
    easy = (1,) * 5 + (4,) + (1,) * (len(layout.modes) - 7)
    ranks = list(easy)
    ranks[4], ranks[6] = 2, 2  # what a rank of 4 in binary modes needs beside it
    train = with_ranks(layout.modes, tuple(ranks), 0)
    found = adapt(TrainField(layout, train), layout, rank=1, tolerance=1e-9)
    assert found.converged
    assert found.train.ranks == tuple(ranks)


def kink(keys: Array) -> torch.Tensor:
    sums = DIGITS.indices(keys.ravel()).sum(axis=1) / 9
    return torch.from_numpy(1 / (1e-2 + np.abs(sums - 2.5))).reshape(keys.shape)


def assert_no_silent_failure(seed: int) -> None:
    truth = everything(DIGITS, kink).reshape(DIGITS.modes)
    found = adapt(kink, DIGITS, seed, rank=3, tolerance=1e-8)
    error = relative(found.train, truth)
    assert not (found.error <= 1e-8 and error > 1e-6)
    assert found.converged == (error <= 1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_kink_never_fails_silently(seed: int) -> None:
    assert_no_silent_failure(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 10))
def test_the_kink_never_fails_silently_from_many_starts(seed: int) -> None:
    assert_no_silent_failure(seed)


def test_the_kink_does_fail_silently_where_nobody_looks_for_errors() -> None:
    """That the test above could fail: sweeps alone agree with all that they saw, and are wrong."""
    truth = everything(DIGITS, kink).reshape(DIGITS.modes)
    sets = cross(kink, DIGITS, random_start(DIGITS, 27, 1), sweeps=4, seed=1)
    forward = ForwardSet.of(DIGITS, sets)
    values = kink(forward.keys)
    train = interpolate(values, forward)
    seen = train.at(torch.from_numpy(DIGITS.indices(forward.keys)))
    assert (seen - values).norm() <= 1e-9 * values.norm()
    assert relative(train, truth) > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_a_small_object_in_empty_space_is_found(seed: int) -> None:
    layout = qtt_layout((32, 32, 32), 1)

    def ball(keys: Array) -> torch.Tensor:
        away = np.square(layout.entries(keys.ravel())[:, :3] - (21, 9, 12)).sum(axis=1)
        return torch.from_numpy(np.exp(-away / 8).round(9)).reshape(keys.shape)

    found = adapt(ball, layout, seed, tolerance=1e-6)
    truth = everything(layout, ball).reshape(layout.modes)
    assert found.converged
    assert relative(found.train, truth) <= 1e-5


@pytest.mark.parametrize("whole", [False, True])
def test_vectors_are_adapted_to_as_numbers_are(whole: bool) -> None:
    layout = qtt_layout((8, 8, 8), 3, whole_features=True)
    train = with_ranks(layout.modes, (2, 4, 5, 6, 7, 6, 5, 4, 3), 0)
    target = layout.spatial() if whole else layout

    def sample(keys: Array) -> torch.Tensor:
        if not whole:
            return TrainField(layout, train)(keys)
        rows = torch.from_numpy(target.indices(keys.ravel()))
        return train.fibres_at(rows).reshape(*keys.shape, 3)

    found = adapt(sample, target, tolerance=1e-9)
    assert found.converged
    assert found.train.modes == layout.modes
    assert relative(found.train, train.full()) <= 1e-12


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constants_have_rank_1(value: float) -> None:
    layout = qtt_layout((9, 8, 7), 2)
    found = adapt(
        lambda keys: torch.full(keys.shape, value, dtype=torch.float64), layout, rank=4, tolerance=1e-9
    )
    assert (found.converged, found.rounds, set(found.train.ranks)) == (True, 2, {1})
    assert torch.allclose(found.train.full(), torch.tensor(value, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 30), (1, 7, 6), (1, 1, 1)])
def test_thin_volumes_are_exact(shape: tuple[int, int, int]) -> None:
    layout = tt_layout(shape, 1)

    def sample(keys: Array) -> torch.Tensor:
        return torch.from_numpy(np.sin(1.0 + keys**2))

    found = adapt(sample, layout, tolerance=1e-9)
    assert found.converged
    assert relative(found.train, everything(layout, sample).reshape(layout.modes)) <= 1e-12


def noise(keys: Array) -> torch.Tensor:
    """A value between -1 and 1 that has nothing to do with its neighbours': a hash of the key."""
    mixed = (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) / 2**52 - 1)


def test_noise_ends_soon_at_the_largest_rank_and_is_not_believed() -> None:
    layout = qtt_layout((32, 32, 32), 1)
    found = adapt(noise, layout, max_rank=6, tolerance=1e-3)
    assert not found.converged
    assert found.error > 0.1
    assert max(found.sets.sizes) == 6
    assert found.rounds <= 12  # of 20: neither ranks nor errors get any better


def test_a_rank_that_is_too_small_is_not_believed() -> None:
    layout = tt_layout((20, 20, 20), 1)
    train = random_train(layout.modes, 8, 0)
    found = adapt(TrainField(layout, train), layout, max_rank=5)
    assert not found.converged
    assert max(found.train.ranks) == 5
    assert found.error > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [3, 12])
@pytest.mark.parametrize("layout", [qtt_layout((16, 16, 16), 4), tt_layout((40, 30, 20), 3)])
def test_no_run_looks_at_more_than_announced(layout: Layout, rank: int, seed: int) -> None:
    field = Counted(noise)
    settings = {"max_rank": rank, "rounds": 4}
    adapt(field, layout, seed, rank=min(rank, 4), **settings)
    announced = most_samples(layout.modes, rank, AdaptiveConfig(**settings))
    assert announced / 20 < field.samples <= announced


def test_no_run_on_vectors_looks_at_more_than_announced() -> None:
    layout = tt_layout((40, 3, 2), 64).spatial()
    field = Counted(lambda keys: noise(keys[..., None] * 64 + np.arange(64)))
    adapt(field, layout, max_rank=12, rounds=4)
    announced = most_samples(layout.modes, 12, AdaptiveConfig(max_rank=12, rounds=4))
    assert announced / 20 < field.samples <= announced


def test_the_same_seed_gives_the_same_bits() -> None:
    layout = qtt_layout((16, 16, 16), 2)
    train = random_train(layout.modes, 5, 1)
    state = torch.get_rng_state()
    first, again, other = (adapt(TrainField(layout, train), layout, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.train.cores, again.train.cores, strict=True))
    assert (first.error, first.rounds) == (again.error, again.rounds)
    pairs = zip(first.sets.right, other.sets.right, strict=True)
    assert not all(np.array_equal(a, b) for a, b in pairs)


def test_what_cannot_be_adapted_is_refused() -> None:
    layout = tt_layout((6, 5, 4), 1)
    start = random_start(layout, 2, 0)
    with pytest.raises(InvalidShape, match="one volume at a time"):
        adaptive_cross(noise, layout, IndexSets.batched([start, start]), AdaptiveConfig())
    with pytest.raises(NonFiniteSample, match="nan"):
        adaptive_cross(
            lambda keys: torch.where(noise(keys) > 0, noise(keys), torch.nan), layout, start, AdaptiveConfig()
        )


@pytest.mark.parametrize(
    "settings", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"max_rank": 0}, {"rounds": 0}, {"extra": -1}]
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InvalidConfig, match=name):
        AdaptiveConfig(**settings)


def test_progress_is_reported_and_may_end_the_work() -> None:
    layout = tt_layout((12, 12, 12), 1)
    sample, seen = TrainField(layout, random_train(layout.modes, 4, 0)), []
    start = random_start(layout, 2, 0)
    config = AdaptiveConfig()
    found = adaptive_cross(sample, layout, start, config, report=lambda *args: seen.append(args))
    assert {(phase, total) for phase, _, total in seen} == {("adapting", config.rounds)}
    done = [before for _, before, _ in seen]
    assert (done[0], done[-1]) == (0, found.rounds)
    assert done == sorted(done)
    assert len(done) >= 3 * found.rounds * len(start.right)  # two half-sweeps and a search, bond by bond

    def cancel(phase: str, done: int, total: int | None) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        adaptive_cross(sample, layout, start, config, report=cancel)
