"""Cross-approximation: exactness, counts, nestedness, degenerate data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from model_fields import Array, FunctionField, TrainField, blobs, hilbert, random_train

from models.cpic.cross import Sample, cross
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, feasible_ranks, nested_samples, random_start
from models.cpic.interpolate import interpolate
from models.errors import InvalidShape, NonFinite, NonFiniteSample
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.rounding import tt_svd
from models.tt.train import TensorTrain

EXACT_LAYOUTS = {
    "tt": tt_layout((32, 32, 32), 16),
    "qtt": qtt_layout((32, 32, 32), 16),
    "interleaved": qtt_layout((32, 32, 32), 16, "interleaved"),
    "mixed radix": qtt_layout((30, 45, 16), 10),
}


def approximate(field: Sample, layout: Layout, rank: int, seed: int) -> tuple[TensorTrain, IndexSets]:
    sets = cross(field, layout, random_start(layout, rank, seed), seed=seed)
    forward = ForwardSet.of(layout, sets)
    return interpolate(field(forward.keys), forward), sets


def relative_error(train: TensorTrain, field: Sample, layout: Layout) -> float:
    keys = layout.keys_of(np.random.default_rng(99).integers(0, layout.shape, (20_000, 4)))
    truth = field(keys)
    at = train.at(torch.from_numpy(layout.indices(keys)))
    return float(torch.linalg.vector_norm(at - truth) / torch.linalg.vector_norm(truth))


@pytest.mark.parametrize("name", EXACT_LAYOUTS)
@pytest.mark.parametrize("rank", [8, 11])
def test_trains_of_rank_8_are_recovered_in_two_sweeps(name: str, rank: int) -> None:
    layout = EXACT_LAYOUTS[name]
    for seed in range(20 if rank == 8 else 5):
        field = TrainField(layout, random_train(layout.modes, 8, seed))
        train, _ = approximate(field, layout, rank, seed)
        assert relative_error(train, field, layout) <= 1e-10
        assert max(train.ranks) == 8  # what was asked for beyond the true rank is cut


@pytest.mark.parametrize(
    ("layout", "tolerance", "most"),
    [
        (tt_layout((512,) * 3, 1), 2e-8, 170_000),
        (qtt_layout((512,) * 3, 1), 5e-8, 6_000),
        (qtt_layout((512,) * 3, 1, "interleaved"), 1e-10, 6_000),
    ],
    ids=["tt", "sequential", "interleaved"],
)
def test_hilbert_of_512_cubed(layout: Layout, tolerance: float, most: int) -> None:
    for seed in range(3):
        field = FunctionField(layout, hilbert(512))
        train, _ = approximate(field, layout, 10, seed)
        assert len(field.keys) <= most
        assert relative_error(train, field, layout) <= tolerance


def test_blobs_are_near_the_best_train_of_the_same_rank() -> None:
    layout = tt_layout((64,) * 3, 1)
    field = FunctionField(layout, blobs(64))
    dense = field(np.arange(64**3)).reshape(64, 64, 64)
    best = torch.linalg.vector_norm(tt_svd(dense, max_rank=10).full() - dense)
    for seed in range(3):
        train, _ = approximate(field, layout, 10, seed)
        assert torch.linalg.vector_norm(train.full() - dense) <= 4 * best


@pytest.mark.parametrize("layout", [tt_layout((40, 30, 20), 8), qtt_layout((64, 48, 20), 7)])
def test_nested_sets_look_at_exactly_as_many_entries_as_the_law_says(layout: Layout) -> None:
    field = FunctionField(layout, blobs(64))
    _, sets = approximate(field, layout, 7, 3)
    forward = ForwardSet.of(layout, sets)
    assert (forward.samples, len(forward.keys)) == nested_samples(layout.modes, sets.sizes)
    for core, (J, K) in enumerate(zip(sets.left, sets.right, strict=True)):
        assert np.isin(J, sets.prefixes(core)[:, None] + layout.digits(core)).all()
        assert np.isin(K, layout.digits(core + 1)[:, None] + sets.suffixes(core + 1)).all()
        assert len(np.unique(J)) == len(J) == len(np.unique(K)) == len(K)


def test_the_interpolant_agrees_with_all_samples_that_it_is_made_from() -> None:
    layout = tt_layout((20, 20, 20), 1)
    field = FunctionField(layout, blobs(20))
    train, sets = approximate(field, layout, 4, 0)
    for core in range(3):
        keys = sets.block(layout, core).ravel()
        at = train.at(torch.from_numpy(layout.indices(keys)))
        assert torch.allclose(at, field(keys), atol=1e-11)
    assert all(
        float(core.abs().max()) <= 1.0501 for core in train.cores[:-1]
    )  # C_k G_k^-1: maxvol's tolerance


@pytest.mark.parametrize("value", [0.0, 3.5])
@pytest.mark.parametrize("layout", [tt_layout((20, 18, 16), 4), qtt_layout((20, 18, 17), 4)])
def test_constant_data_become_exact_trains_of_rank_1(value: float, layout: Layout) -> None:
    field = FunctionField(layout, lambda entries: np.full(len(entries), value))
    train, _ = approximate(field, layout, 6, 0)
    assert set(train.ranks) == {1}
    keys = np.arange(1000)
    at = train.at(torch.from_numpy(layout.indices(keys)))
    assert torch.allclose(at, torch.tensor(value, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_small_object_in_empty_space_is_found_from_an_empty_start() -> None:
    layout = qtt_layout((64, 64, 64), 1)

    def ball(entries: Array) -> Array:
        return np.exp(-np.square((entries[:, :3] - 40) / 4).sum(axis=1)).round(6)

    field = FunctionField(layout, ball)

    def looks_empty(seed: int) -> bool:
        return not field(random_start(layout, 8, seed).block(layout, 0)).any()

    empty = [seed for seed in range(20) if looks_empty(seed)][:3]
    assert empty
    for seed in empty:
        train, _ = approximate(field, layout, 8, seed)
        assert relative_error(train, field, layout) <= 1e-2


def test_warm_starts_need_one_half_sweep() -> None:
    layout = qtt_layout((64,) * 3, 1)
    field = FunctionField(layout, hilbert(64))
    _, cold = approximate(field, layout, 8, 0)
    changed = FunctionField(layout, lambda entries: hilbert(64)(entries) ** 1.1)
    warm = cross(changed, layout, cold, sweeps=1)
    forward = ForwardSet.of(layout, warm)
    train = interpolate(changed(forward.keys), forward)
    assert len(changed.keys) == len(forward.keys)  # nothing but the forward set was looked at
    assert relative_error(train, changed, layout) <= 1e-6


def test_the_same_seed_gives_the_same_bits_and_torch_knows_nothing_of_it() -> None:
    layout = qtt_layout((30, 20, 10), 4)
    field = FunctionField(layout, lambda entries: np.sin(entries @ (1.0, 2.0, 3.0, 0.5)).round(1))
    state = torch.get_rng_state()
    first, _ = approximate(field, layout, 6, 5)
    torch.manual_seed(1)
    again, _ = approximate(field, layout, 6, 5)
    torch.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first.cores, again.cores, strict=True))


def test_gradients_of_the_interpolant_are_exact_for_fixed_indices() -> None:
    layout = tt_layout((5, 4, 3), 2)
    field = FunctionField(layout, lambda e: 1 / (1 + e @ np.array([0.5, 0.7, 0.9, 0.3])))
    sets = cross(field, layout, random_start(layout, 2, 0))
    forward = ForwardSet.of(layout, sets)
    values = field(forward.keys).requires_grad_()
    probe = random_train(layout.modes, 2, 0)
    assert torch.autograd.gradcheck(lambda v: interpolate(v, forward).inner(probe), values)


def test_ranks_are_capped_to_what_bonds_carry() -> None:
    assert feasible_ranks((2,) * 6, 10) == (2, 4, 8, 4, 2)
    assert feasible_ranks((5, 3, 2), 10) == (5, 2)
    assert feasible_ranks((4, 4, 4), (3, 2)) == (3, 2)
    assert feasible_ranks((7,), 10) == ()
    start = random_start(qtt_layout((8, 8, 8), 4), 10, 0)
    assert all(len(np.unique(K)) == r for K, r in zip(start.right, start.sizes, strict=True))
    assert start.sizes == feasible_ranks((2,) * 11, 10)


def test_random_starts_use_every_suffix_before_any_twice() -> None:
    layout = qtt_layout((256, 256, 256), 16)
    start = random_start(layout, 10, 0)
    for bond, (K, after) in enumerate(pairwise(start.right)):
        tails = np.array(
            [key - digit for key in K for digit in layout.digits(bond + 1) if key - digit in after]
        )
        assert np.isin(K, layout.digits(bond + 1)[:, None] + after).all()
        if len(K) >= len(after):
            assert set(after) <= set(tails)


def test_ranks_that_make_no_sense_are_refused_at_the_bond() -> None:
    with pytest.raises(InvalidShape, match="bond 1: a rank must be at least 1, not 0"):
        feasible_ranks((4, 4, 4), (2, 0))
    with pytest.raises(InvalidShape, match="2 bonds, but 3 ranks"):
        feasible_ranks((4, 4, 4), (2, 2, 2))
    layout = tt_layout((4, 4, 4), 1)
    field = FunctionField(layout, hilbert(4))
    sets = IndexSets((), (np.arange(5), np.arange(2)))
    with pytest.raises(InvalidShape, match="bond 0: 5 suffixes, but it can carry a rank of 4"):
        cross(field, layout, sets)
    with pytest.raises(InvalidShape, match="at least one sweep"):
        cross(field, layout, random_start(layout, 2, 0), sweeps=0)
    with pytest.raises(InvalidShape, match="bond 0: 1 prefixes, but 2 suffixes"):
        interpolate(
            torch.ones(8),
            ForwardSet.of(layout, IndexSets((np.array([0]),) * 2, (np.array([0, 4]), np.array([0, 1])))),
        )


def test_a_broken_nesting_is_refused_at_the_bond() -> None:
    layout = tt_layout((4, 4, 4), 1)
    sets = IndexSets((np.array([0, 16]), np.array([32, 36])), (np.array([0, 1]), np.array([0, 1])))
    with pytest.raises(InvalidShape, match="bond 1: its prefixes do not continue"):
        ForwardSet.of(layout, sets)
    with pytest.raises(InvalidShape, match="bond 0: its suffixes do not continue"):
        ForwardSet.of(layout.mirrored(), sets.mirrored())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_name_their_voxel(value: float) -> None:
    layout = qtt_layout((7, 6, 5), 2)

    def holed(entries: Array) -> Array:
        values = hilbert(8)(entries)
        return np.where((entries[:, :3] == (3, 2, 4)).all(axis=1), value, values)

    field = FunctionField(layout, holed)
    with pytest.raises(NonFiniteSample) as caught:
        cross(field, layout, random_start(layout, 40, 0), sweeps=3)
    assert caught.value.voxel == (3, 2, 4)
    start = random_start(layout, 2, 0)
    forward = ForwardSet.of(layout, cross(FunctionField(layout, hilbert(8)), layout, start))
    values = torch.ones(len(forward.keys), dtype=torch.float64)
    values[5] = value
    with pytest.raises(NonFinite, match=r"samples must be finite, but the one at \(5,\)"):
        interpolate(values, forward)


def test_finite_samples_whose_sum_is_not_are_no_trouble() -> None:
    layout = tt_layout((9, 8, 7), 1)
    field = FunctionField(layout, lambda entries: 1e307 * (1 + hilbert(8)(entries) / 20))
    train, _ = approximate(field, layout, 3, 0)
    assert all(bool(core.isfinite().all()) for core in train.cores)


def test_a_source_that_breaks_off_ends_the_work_with_its_own_error() -> None:
    layout = qtt_layout((16, 16, 16), 2)
    calls = []

    def breaking(keys: Array) -> torch.Tensor:
        calls.append(keys.size)
        if len(calls) == 7:
            raise OSError("the disk went away")
        return FunctionField(layout, hilbert(16))(keys)

    with pytest.raises(OSError, match="the disk went away"):
        cross(breaking, layout, random_start(layout, 4, 0))
    assert len(calls) == 7


@pytest.mark.parametrize("shape", [(1, 9, 8), (7, 1, 1), (1, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("features", [1, 3])
def test_modes_of_one_are_no_trouble(shape: tuple[int, int, int], features: int) -> None:
    for layout in (tt_layout(shape, features), qtt_layout(shape, features)):
        field = FunctionField(layout, lambda entries: np.cos(entries @ (1.0, 2.0, 0.7, 0.3)))
        train, sets = approximate(field, layout, 30, 0)
        assert train.modes == layout.modes
        assert len(sets.left) == len(layout.modes) - 1
        assert relative_error(train, field, layout) <= 1e-12


def test_sweeps_report_every_step_and_may_be_ended() -> None:
    layout, seen = tt_layout((9, 8, 7), 4), []
    field = FunctionField(layout, hilbert(9))
    start = random_start(layout, 3, 0)
    cross(field, layout, start, sweeps=2, report=lambda *args: seen.append(args))
    assert seen == [("sampling", step, 9) for step in range(1, 10)]
