"""Rows of (nearly) maximal volume (Goreinov et al., How to Find a Good Submatrix, 2010)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidShape
from models.types import Int64

TOLERANCE = 1.05
RANK_TOLERANCE = 1e-13
"""For float64 samples. On analytic functions 1e-12 cuts away digits that interpolation can still use."""


@dataclass(frozen=True, eq=False)
class Maxvol:
    """Rows of a matrix A, and the coefficients of all rows in them: A = coefficients @ A[rows].

    `rows` (r,) has as many entries as A has numerical rank: none for a matrix of zeros.
    `coefficients` (n, r) has no entry above the tolerance, and the identity in `rows`.
    """

    rows: Int64
    coefficients: Float64[Tensor, "n r"]


def maxvol(
    matrix: Float64[Tensor, "n m"], *, tolerance: float = TOLERANCE, rank_tolerance: float = RANK_TOLERANCE
) -> Maxvol:
    """Rows that span the matrix, found on an orthonormal basis of its columns.

    Start: rows of an LU decomposition with row pivots. Then, while some coefficient exceeds `tolerance`,
    its row replaces the one that it is a coefficient of, which multiplies the volume by that coefficient.
    Singular values below `rank_tolerance` times the largest count as zero.
    Raises InvalidShape for what is not a finite matrix.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidShape(f"maxvol needs a non-empty matrix, not shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InvalidShape(f"maxvol needs finite entries; this {tuple(matrix.shape)} matrix has others")
    basis = column_basis(matrix, rank_tolerance)
    if basis.shape[1] == 0:
        return Maxvol(np.empty(0, np.int64), basis)
    rows = _lu_rows(basis)
    coefficients = torch.linalg.solve(basis[rows], basis, left=False)
    return _exchange(rows, coefficients, tolerance)


def column_basis(matrix: Float64[Tensor, "n m"], rank_tolerance: float) -> Float64[Tensor, "n r"]:
    """An orthonormal basis of the columns; r is the numerical rank."""
    q, r = torch.linalg.qr(matrix)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    rank = int((s > rank_tolerance * s[0]).sum())
    basis: Tensor = q @ u[:, :rank]
    return basis


def _lu_rows(basis: Float64[Tensor, "n r"]) -> Int64:
    """The rows that partial pivoting brings to the top."""
    _, pivots = torch.linalg.lu_factor(basis)
    order = np.arange(len(basis))
    for i, pivot in enumerate(pivots.tolist()):
        order[[i, pivot - 1]] = order[[pivot - 1, i]]
    return order[: basis.shape[1]]


def _exchange(rows: Int64, coefficients: Float64[Tensor, "n r"], tolerance: float) -> Maxvol:
    """Exchange rows until every coefficient is within the tolerance; each exchange is a rank-1 update."""
    rows, C = rows.copy(), coefficients
    for _ in range(100 + 10 * C.shape[1]):  # far above what was ever needed: rounding cannot make it cycle
        i, j = divmod(int(C.abs().argmax()), C.shape[1])
        if abs(float(C[i, j])) <= tolerance:
            break
        change = C[i].clone()
        change[j] -= 1
        C = C - torch.outer(C[:, j] / C[i, j], change)
        rows[j] = i
    return Maxvol(rows, C)
