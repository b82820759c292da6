"""TT-SVD by Gram matrices and its certificate; alternating least squares, against their definitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from model_fields import random_train

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.putt.factorising import factorised, rank_caps
from models.threads import one_thread
from models.tt import als as als_module
from models.tt.als import als, als_observed
from models.tt.rounding import truncated_gram, tt_svd

pytestmark = pytest.mark.usefixtures("single_thread")

MODES = (8, 8, 8, 8)


@pytest.fixture
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def smooth(seed: int) -> torch.Tensor:
    """A tensor whose singular values fall, of every unfolding."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(MODES, generator=generator, dtype=torch.float64)
    return rough.cumsum(0).cumsum(1).cumsum(3) + rough


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (7, 7)])
def test_a_gram_truncation_is_that_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis, rest, energies = truncated_gram(matrix, 3)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(basis.mT @ basis, torch.eye(3, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(basis @ rest, (u[:, :3] * s[:3]) @ vh[:3], atol=1e-12)
    assert torch.allclose(energies, s.square(), atol=1e-12)
    assert truncated_gram(matrix, floor=float(s[1] * s[2]))[0].shape[1] == 2
    assert truncated_gram(torch.zeros(shape, dtype=torch.float64))[0].shape[1] == 1


@pytest.mark.parametrize("max_rank", [2, 5, (3, 7, 4)])
def test_the_error_is_the_sum_of_the_tails_and_no_train_is_below_the_largest(
    max_rank: int | tuple[int, ...],
) -> None:
    tensor = smooth(1)
    found = factorised(tensor, max_rank=max_rank)
    error = (found.train.full() - tensor).square().sum()
    assert torch.isclose(error, torch.tensor(found.bound_high, dtype=torch.float64), rtol=1e-9)
    tails = [
        torch.linalg.svdvals(tensor.reshape(8 ** (bond + 1), -1))[rank:].square().sum()
        for bond, rank in enumerate(found.train.ranks)
    ]
    assert found.bound_low == pytest.approx(float(max(tails)), rel=1e-9)
    better = als(tensor, found.train, sweeps=8)
    assert found.bound_low <= (better.full() - tensor).square().sum() <= error


def test_a_long_unfolding_is_bounded_by_the_projections_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = factorised(smooth(2), max_rank=3)
    monkeypatch.setattr("models.putt.factorising.EXACT_SIDE", 1)
    assert max(exact.tails) == factorised(smooth(2), max_rank=3).bound_low <= exact.bound_low


def test_exact_ranks_are_found_and_nothing_is_left_over() -> None:
    train = random_train(MODES, 3, 0)
    found = factorised(train.full())
    assert found.train.ranks == (3, 3, 3)
    assert torch.allclose(found.train.full(), train.full(), atol=1e-10)
    assert found.bound_high <= 1e-12 * train.norm() ** 2
    assert factorised(torch.zeros(MODES)).train.ranks == (1, 1, 1)
    assert factorised(torch.ones(8)).train.modes == (8,)


def test_what_cannot_be_factorised_is_refused() -> None:
    assert rank_caps((8,) * 6, 40) == (8, 40, 40, 40, 8)
    with pytest.raises(InvalidShape, match="2 ranks for a train of 3 bonds"):
        factorised(smooth(0), max_rank=(2, 2))
    with pytest.raises(InvalidShape, match="bond 2: a rank cap must be at least 1, not 0"):
        factorised(smooth(0), max_rank=(2, 0, 2))
    broken = smooth(0)
    broken[1, 2, 3, 4] = torch.nan
    with pytest.raises(NonFinite, match=r"\(1, 2, 3, 4\)"):
        factorised(broken)


def test_a_sweep_never_raises_the_error_and_ends_where_each_core_is_best() -> None:
    tensor = smooth(3)
    train = tt_svd(smooth(4), max_rank=4)
    errors = [(train.full() - tensor).square().sum()]
    for _ in range(6):
        train = als(tensor, train)
        assert max(train.ranks) <= 4
        errors.append((train.full() - tensor).square().sum())
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[1] < errors[0] / 9
    assert errors[-1] <= factorised(tensor, max_rank=4).bound_high
    with pytest.raises(InvalidShape, match="not fitted to shape"):
        als(tensor[0], train)


@pytest.mark.parametrize("direct", [True, False])
def test_observed_sweeps_lower_the_sum_of_squares_and_find_a_train_from_half_of_its_entries(
    direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr(als_module, "DIRECT", 0)
    truth = random_train((6, 6, 6, 6), 2, 5)
    generator = torch.Generator().manual_seed(6)
    places = torch.randperm(6**4, generator=generator)[: 6**4 // 2]
    indices = torch.stack(torch.unravel_index(places, truth.modes), dim=1)
    values, ridge = truth.at(indices), 1e-9
    train = random_train(truth.modes, 2, 7)
    sums = []
    for _ in range(8):
        train = als_observed(train, indices, values, ridge=ridge)
        sums.append((train.at(indices) - values).square().sum() + ridge * train.norm() ** 2)
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(sums))
    assert (train.full() - truth.full()).norm() <= 1e-4 * truth.norm()


def test_a_slice_is_the_ridge_regression_both_ways() -> None:
    generator = torch.Generator().manual_seed(8)
    left, right, values = (
        torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((50, 3), (50, 4), (50,))
    )
    design = torch.einsum("ml,mr->mlr", left, right).flatten(1)
    normal = design.T @ design + 0.1 * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.solve(normal, design.T @ values).reshape(3, 4)
    directly = als_module._directly(left, right, values, 0.1).reshape(3, 4)
    stepwise = als_module._conjugate_gradients(left, right, values, torch.zeros_like(expected), 0.1)
    assert torch.allclose(directly, expected, atol=1e-10)
    assert torch.allclose(stepwise, expected, atol=1e-8)


def test_what_cannot_be_fitted_is_refused() -> None:
    train = random_train((3, 3), 2, 0)
    indices, values = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(InvalidConfig, match="ridge"):
        als_observed(train, indices, values, ridge=0.0)
    with pytest.raises(InvalidShape, match="outside of the modes"):
        als_observed(train, indices + 3, values, ridge=1.0)
    with pytest.raises(InvalidShape, match="values"):
        als_observed(train, indices, values[:1], ridge=1.0)
    with pytest.raises(NonFinite):
        als_observed(train, indices, values / 0, ridge=1.0)
