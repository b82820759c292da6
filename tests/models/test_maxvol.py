"""Rows of maximal volume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.errors import InvalidShape
from models.tt.maxvol import TOLERANCE, dominant_rows, leading, maxvol, numerical_rank


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


def gram_volume(A: torch.Tensor) -> float:
    """The squared volume of the parallelepiped of a tall matrix's columns."""
    return float(torch.linalg.det(A.T @ A))


@pytest.mark.parametrize(("n", "r", "count"), [(40, 5, 12), (300, 8, 9), (30, 1, 4), (12, 6, 12)])
def test_every_further_row_is_the_one_that_adds_most_volume(n: int, r: int, count: int) -> None:
    for seed in range(4):
        A = gaussian(n, r, seed)
        rows = dominant_rows(A, count, rank=r).tolist()
        assert len(set(rows)) == count
        assert float(torch.linalg.solve(A[rows[:r]], A, left=False).abs().max()) <= TOLERANCE
        for k in range(r, count):
            chosen, others = rows[:k], [i for i in range(n) if i not in rows[:k]]
            volumes = {i: gram_volume(A[[*chosen, i]]) for i in others}
            assert volumes[rows[k]] >= max(volumes.values()) * (1 - 1e-9)
            C = A @ torch.linalg.pinv(A[chosen])
            gain = volumes[rows[k]] / gram_volume(A[chosen])
            assert gain == pytest.approx(1 + float(C[rows[k]].square().sum()), rel=1e-8)


def test_more_rows_make_smaller_coefficients() -> None:
    A = gaussian(200, 10, 0)
    square, tall = (A[dominant_rows(A, count, rank=10)] for count in (10, 20))
    norms = [float((A @ torch.linalg.pinv(chosen)).norm(dim=1).max()) for chosen in (square, tall)]
    assert norms[1] < 0.75 * norms[0]
    assert norms[1] < 1.5


@pytest.mark.parametrize(("m", "rank", "count"), [(6, 6, 6), (6, 6, 11), (40, 6, 9), (3, 6, 8)])
def test_batches_give_what_their_matrices_give(m: int, rank: int, count: int) -> None:
    batch = torch.stack([gaussian(50, m, seed) for seed in range(5)] + [torch.zeros(50, m).double()])
    batch[2] = gaussian(50, 2, 0) @ gaussian(2, m, 1)
    batch[3] *= 1e-250
    noise = gaussian(50, rank, 9)
    together = dominant_rows(batch.reshape(2, 3, 50, m), count, rank=rank, noise=noise)
    assert together.shape == (2, 3, count)
    for rows, matrix in zip(together.reshape(6, count), batch, strict=True):
        assert rows.tolist() == dominant_rows(matrix, count, rank=rank, noise=noise).tolist()


@pytest.mark.parametrize("scale", [0.0, 1e-250, 1.0, 1e250])
def test_missing_directions_are_taken_by_noise_and_others_are_not(scale: float) -> None:
    A = scale * (gaussian(60, 2, 0) @ gaussian(2, 5, 1))
    found = []
    for seed in range(20):
        rows = dominant_rows(A, 5, rank=5, noise=gaussian(60, 5, seed))
        assert len(set(rows.tolist())) == 5
        assert numerical_rank(A[rows], 1e-9) == (2 if scale else 0)
        found.append(frozenset(rows.tolist()))
    assert len(set(found)) == 20
    assert len(frozenset().union(*found)) > 40  # of 60: no row is out of reach


def test_noise_changes_nothing_where_nothing_is_missing() -> None:
    A = gaussian(60, 5, 0)
    plain = dominant_rows(A, 5).tolist()
    assert all(dominant_rows(A, 5, noise=gaussian(60, 5, seed)).tolist() == plain for seed in range(5))


def test_leading_directions_are_those_of_a_singular_value_decomposition() -> None:
    decay = torch.diag(torch.logspace(0, -8, 90, dtype=torch.float64))
    A = torch.linalg.qr(gaussian(300, 90, 0))[0] @ decay @ torch.linalg.qr(gaussian(90, 90, 1))[0]
    for matrix in (A, A.T, A[:, :20]):
        u, s, v = leading(matrix, 8)
        best = torch.linalg.svdvals(matrix)
        assert torch.allclose(s, best[:8], rtol=1e-3)
        left_out = float((matrix - u * s @ v.T).norm())
        assert left_out <= 1.001 * float(best[8:].norm())
        for basis in (u, v):
            assert torch.allclose(basis.T @ basis, torch.eye(8, dtype=torch.float64), atol=1e-10)


def test_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidShape, match="5 rows were asked for, but the matrix has 4"):
        dominant_rows(gaussian(4, 3, 0), 5)
