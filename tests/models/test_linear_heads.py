"""Linear heads: closed forms against plain refits, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.learning.linear import leave_one_out


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def refitted(X: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Each row's residual from the ridge with an intercept that was fitted to the others."""
    residuals = []
    for i in range(len(X)):
        others = np.delete(np.arange(len(X)), i)
        mean, centre = y[others].mean(), X[others].mean(dim=0)
        A = X[others] - centre
        w = torch.linalg.solve(A.T @ A + penalty * torch.eye(X.shape[1]).double(), A.T @ (y[others] - mean))
        residuals.append(y[i] - mean - (X[i] - centre) @ w)
    return torch.stack(residuals)


@pytest.mark.parametrize(("rows", "columns"), [(12, 3), (12, 11), (12, 40), (2, 1)])
@pytest.mark.parametrize("penalty", [1e-4, 1.0, 1e6])
def test_leave_one_out_residuals_are_those_of_refits(rows: int, columns: int, penalty: float) -> None:
    X, y = 5 + normal(rows, columns), 100 + normal(rows, seed=1)
    assert torch.allclose(leave_one_out(X, y, penalty), refitted(X, y, penalty), rtol=1e-8, atol=1e-9)


def test_leave_one_out_stays_exact_where_every_row_is_interpolated() -> None:
    X, y, penalty = normal(20, 60), normal(20, seed=1), 1e-7
    residuals = leave_one_out(X, y, penalty)
    assert torch.allclose(residuals, refitted(X, y, penalty), rtol=1e-5)
    assert torch.allclose(leave_one_out(X * 1e3, y, penalty * 1e6), residuals, rtol=1e-6)


def test_leave_one_out_has_the_right_gradient() -> None:
    for columns in (2, 9):
        X, y = normal(6, columns).requires_grad_(), normal(6, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda X, y: leave_one_out(X, y, 0.3), (X, y))


def test_leave_one_out_of_features_that_tell_nothing_is_the_mean_of_the_others() -> None:
    y = normal(7, seed=1)
    X = torch.full((7, 4), 3.0, dtype=torch.float64, requires_grad=True)
    residuals = leave_one_out(X, y, 1e-3)
    assert torch.allclose(residuals, (y - y.mean()) * 7 / 6, rtol=1e-12)
    residuals.square().sum().backward()
    assert X.grad is not None
    assert bool(X.grad.isfinite().all())


def test_leave_one_out_takes_float32_and_answers_in_float64() -> None:
    X, y = normal(8, 3).float().requires_grad_(), normal(8, seed=1).float()
    residuals = leave_one_out(X, y, 1.0)
    assert residuals.dtype == torch.float64
    residuals.square().mean().backward()
    assert X.grad is not None
    assert X.grad.dtype == torch.float32


def test_leave_one_out_refuses_what_it_cannot_take() -> None:
    X, y = normal(5, 2), normal(5, seed=1)
    with pytest.raises(InvalidShape, match=r"at least 2 rows"):
        leave_one_out(X[:1], y[:1], 1.0)
    with pytest.raises(InvalidShape, match=r"targets \(4,\)"):
        leave_one_out(X, y[:4], 1.0)
    with pytest.raises(InvalidConfig, match="penalty = 0"):
        leave_one_out(X, y, 0.0)
    with pytest.raises(NonFinite, match=r"features .* \(2, 1\)"):
        leave_one_out(
            X.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(torch.nan).double()), y, 1.0
        )
