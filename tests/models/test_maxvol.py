"""Rows of maximal volume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.errors import InvalidShape
from models.tt.maxvol import TOLERANCE, maxvol


def gaussian(n: int, r: int, seed: int) -> torch.Tensor:
    return torch.randn(n, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "r"), [(10, 10), (20, 10), (300, 7), (50, 1)])
def test_rows_dominate_and_reproduce_the_matrix(n: int, r: int) -> None:
    for seed in range(5):
        A = gaussian(n, r, seed)
        found = maxvol(A)
        assert len(set(found.rows.tolist())) == r
        assert float(found.coefficients.abs().max()) <= TOLERANCE
        assert torch.allclose(found.coefficients @ A[found.rows], A, atol=1e-11)


def test_volume_is_near_the_largest_of_all() -> None:
    A = gaussian(12, 3, 1)
    volumes = [abs(float(torch.linalg.det(A[list(rows)]))) for rows in itertools.combinations(range(12), 3)]
    found = abs(float(torch.linalg.det(A[maxvol(A).rows])))
    assert found >= max(volumes) / TOLERANCE**3 / 3  # a dominant submatrix, Goreinov et al.: r^(r/2) at worst
    assert found >= np.quantile(volumes, 0.98)


def test_badly_scaled_columns_change_nothing() -> None:
    A = gaussian(60, 6, 2) @ torch.diag(torch.logspace(0, -10, 6, dtype=torch.float64))
    found = maxvol(A)
    assert len(found.rows) == 6
    assert float(found.coefficients.abs().max()) <= TOLERANCE


def test_rank_deficient_matrices_give_as_many_rows_as_they_have_rank() -> None:
    A = gaussian(40, 3, 0) @ gaussian(3, 8, 1)
    found = maxvol(A)
    assert len(found.rows) == 3
    assert torch.allclose(found.coefficients @ A[found.rows], A, atol=1e-11)
    constant = maxvol(torch.full((5, 4), 7.0, dtype=torch.float64))
    assert len(constant.rows) == 1
    zero = maxvol(torch.zeros(5, 4, dtype=torch.float64))
    assert zero.rows.shape == (0,)
    assert zero.coefficients.shape == (5, 0)


def test_wide_matrices_have_no_more_rows_than_they_have() -> None:
    assert sorted(maxvol(gaussian(3, 8, 0)).rows.tolist()) == [0, 1, 2]


def test_what_is_no_finite_matrix_is_refused() -> None:
    with pytest.raises(InvalidShape, match="finite"):
        maxvol(torch.tensor([[1.0, torch.nan]], dtype=torch.float64))
    with pytest.raises(InvalidShape, match=r"shape \(0, 3\)"):
        maxvol(torch.zeros(0, 3, dtype=torch.float64))
