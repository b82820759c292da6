"""The algebra of tensor trains against dense tensors."""

from __future__ import annotations

import pytest
import torch
from model_fields import random_train

from models.errors import InvalidShape
from models.tt.rounding import right_orthogonal, rounded, tt_svd
from models.tt.train import TensorTrain


def test_entries_and_inner_products_are_those_of_the_dense_tensor() -> None:
    modes = (4, 1, 5, 3)
    train, other = random_train(modes, 3, 0), random_train(modes, 2, 1)
    indices = torch.cartesian_prod(*(torch.arange(n) for n in modes))
    assert torch.allclose(train.at(indices), train.full().flatten(), rtol=1e-13, atol=1e-13)
    assert torch.isclose(train.inner(other), (train.full() * other.full()).sum(), rtol=1e-12)
    assert torch.isclose(train.norm(), torch.linalg.vector_norm(train.full()), rtol=1e-12)


def test_full_agrees_with_the_definition_as_a_matrix_product() -> None:
    train = random_train((3, 4, 5), 2, 2)
    a, b, c = (core[:, i, :] for core, i in zip(train.cores, (2, 1, 3), strict=True))
    assert torch.isclose(train.full()[2, 1, 3], (a @ b @ c)[0, 0])


def test_cores_that_do_not_fit_are_refused_at_the_bond() -> None:
    def core(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    with pytest.raises(InvalidShape, match="bond 1: rank 2 on its left, 3 on its right"):
        TensorTrain((core(1, 4, 2), core(3, 4, 1)))
    with pytest.raises(InvalidShape, match="bond 2"):
        TensorTrain((core(1, 4, 2), core(2, 4, 2)))
    with pytest.raises(InvalidShape, match="core 1"):
        TensorTrain((core(1, 4, 2), torch.zeros(2, 4, 1)))
    with pytest.raises(InvalidShape, match="at least one core"):
        TensorTrain(())
    with pytest.raises(InvalidShape, match="no inner product"):
        random_train((2, 3), 1, 0).inner(random_train((3, 2), 1, 0))


@pytest.mark.parametrize("eps", [0.5, 0.1, 1e-3, 1e-10])
def test_tt_svd_keeps_its_error_bound(eps: float) -> None:
    tensor = torch.rand((4, 6, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    train = tt_svd(tensor, eps=eps)
    error = torch.linalg.vector_norm(train.full() - tensor)
    assert error <= eps * torch.linalg.vector_norm(tensor)


def test_tt_svd_with_a_rank_cap_is_within_what_the_unfoldings_lose() -> None:
    tensor = torch.rand((5, 6, 4, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    train = tt_svd(tensor, max_rank=3)
    lost = [
        torch.linalg.svdvals(tensor.reshape(rows, -1))[3:].square().sum() for rows in (5, 5 * 6, 5 * 6 * 4)
    ]
    error = torch.linalg.vector_norm(train.full() - tensor)
    assert max(train.ranks) == 3
    assert max(lost).sqrt() <= error <= torch.stack(lost).sum().sqrt() * (1 + 1e-12)


def test_tt_svd_finds_exact_ranks_and_takes_zeros() -> None:
    train = random_train((6, 5, 7, 4), 3, 4)
    assert tt_svd(train.full(), eps=1e-12).ranks == train.ranks == (3, 3, 3)
    zeros = tt_svd(torch.zeros(3, 4, 5, dtype=torch.float64))
    assert zeros.ranks == (1, 1)
    assert not zeros.full().any()
    with pytest.raises(InvalidShape, match="at least 1, not 0"):
        tt_svd(train.full(), max_rank=0)


def test_right_orthogonal_cores_have_orthonormal_rows() -> None:
    train = random_train((4, 5, 6, 3), 4, 5)
    same = right_orthogonal(train)
    assert torch.allclose(same.full(), train.full(), atol=1e-12)
    for core in same.cores[1:]:
        unfolding = core.reshape(len(core), -1)
        assert torch.allclose(unfolding @ unfolding.T, torch.eye(len(core), dtype=torch.float64), atol=1e-13)


def test_rounding_removes_redundant_ranks_and_keeps_its_bound() -> None:
    train = random_train((6, 5, 7, 4), 3, 6)
    first, second, *others = train.cores
    wide = TensorTrain((torch.cat([first] * 2, dim=2), torch.cat([second] * 2, dim=0), *others))
    assert wide.ranks == (6, 3, 3)
    small = rounded(wide, eps=1e-12)
    assert small.ranks == (3, 3, 3)
    assert torch.allclose(small.full(), 2 * train.full(), atol=1e-11)
    for eps in (0.5, 0.2, 0.05):
        error = torch.linalg.vector_norm(rounded(train, eps=eps).full() - train.full())
        assert error <= eps * train.norm()
    assert max(rounded(train, max_rank=2).ranks) == 2
