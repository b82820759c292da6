"""Rows of (nearly) maximal volume (Goreinov et al., How to Find a Good Submatrix, 2010), for many matrices.

Square: as many rows as the rank, found by exchanges that each multiply the volume. Rectangular: further rows,
each the one that multiplies the volume of the (then tall) submatrix most (Mikhalev & Oseledets, Rectangular
maximum-volume submatrices and their applications, 2018).

Which rows to take is a discrete question about small matrices, and its answer is needed on the host, where
the keys of samples are: matrices come from the device once, and the search is numpy's. No gradient here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from models.errors import InvalidShape
from models.types import Int64

Matrices = NDArray[np.float64]
"""(b, n, m): b matrices of n rows and m columns."""

TOLERANCE = 1.05
RANK_TOLERANCE = 1e-13
"""For float64 samples. On analytic functions 1e-12 cuts away digits that interpolation can still use."""
SPARE = 4
"""Directions that subspace iteration follows beyond twice the rank."""
ITERATIONS = 1


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
    q, r = torch.linalg.qr(matrix.detach().cpu())
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    rank = int((s > rank_tolerance * s[0]).sum())
    if rank == 0:
        return Maxvol(np.empty(0, np.int64), matrix.new_empty(len(matrix), 0))
    rows, coefficients = _dominant((q @ u[:, :rank])[None], tolerance)
    return Maxvol(rows[0], torch.from_numpy(coefficients[0]).to(matrix.device))


def dominant_rows(
    matrices: Float64[Tensor, "*batch n m"],
    count: int,
    *,
    rank: int | None = None,
    rank_tolerance: float = RANK_TOLERANCE,
    noise: Float64[Tensor, "n rank"] | None = None,
    tolerance: float = TOLERANCE,
) -> Int64:
    """`count` rows (..., count) of each matrix that carry the `rank` leading directions of its columns.

    `rank` is at most `count`, and as large if it is not given; the rows beyond it are those of a rectangular
    maxvol. Where a matrix has a lower numerical rank, the places left over follow `noise` (n, rank):
    its columns, scaled to `rank_tolerance` times the matrix's largest entry, stand in for the ones that
    are missing, so that an empty matrix gives rows as random as the noise. Raises InvalidShape for more rows
    than there are.
    """
    *batch, n, m = matrices.shape
    rank = min(count, n) if rank is None else min(rank, count, n)
    if count > n:
        raise InvalidShape(f"{count} rows were asked for, but the matrix has {n}")
    basis = _basis(matrices.detach().reshape(-1, n, m), rank, rank_tolerance, noise)
    rows, coefficients = _dominant(basis, tolerance)
    if count > rank:
        rows = _extended(rows, coefficients, count)
    return rows.reshape(*batch, count)


def _basis(matrices: Tensor, rank: int, rank_tolerance: float, noise: Tensor | None) -> Tensor:
    """Orthonormal bases (b, n, rank) of the leading directions of the columns, on the host."""
    if matrices.shape[2] > rank:
        u, s, _ = leading(matrices, rank)
        columns = (u * s[:, None, :]).cpu()
    else:
        columns = matrices.cpu()
    if columns.shape[2] < rank:
        columns = torch.nn.functional.pad(columns, (0, rank - columns.shape[2]))
    if noise is not None:
        scale = rank_tolerance * columns.abs().amax(dim=(1, 2))
        columns = columns + torch.where(scale > 0, scale, 1.0)[:, None, None] * noise
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def leading(
    matrices: Float64[Tensor, "*batch n m"], rank: int
) -> tuple[Float64[Tensor, "*batch n r"], Float64[Tensor, "*batch r"], Float64[Tensor, "*batch m r"]]:
    """The leading part (U, s, V) of a singular value decomposition, A ~ U diag(s) V^T.

    Exact where the smaller side is short; else by subspace iteration from a fixed random start (Halko,
    Martinsson & Tropp 2011, Algorithms 4.4 and 5.1).
    """
    n, m = matrices.shape[-2:]
    if min(n, m) <= (width := 2 * rank + SPARE):
        u, s, v = _thin_svd(matrices)
    else:
        start = torch.from_numpy(np.random.default_rng((m, width)).standard_normal((m, width)))
        q = torch.linalg.qr(matrices @ start.to(matrices.device))[0]
        for _ in range(ITERATIONS):
            q = torch.linalg.qr(matrices @ torch.linalg.qr(matrices.mT @ q)[0])[0]
        u, s, v = _thin_svd(q.mT @ matrices)
        u = q @ u
    return u[..., :rank], s[..., :rank], v[..., :rank]


def numerical_rank(matrix: Float64[Tensor, "n m"], tolerance: float) -> int:
    """How many singular values exceed `tolerance` times the largest; 0 for a matrix of zeros."""
    long = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    s = torch.linalg.svdvals(torch.linalg.qr(long.detach())[1])
    return int((s > tolerance * s[0]).sum())


def _thin_svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, V) by a QR of the long side first."""
    if matrices.shape[-2] < matrices.shape[-1]:
        v, s, u = _thin_svd(matrices.mT)
        return u, s, v
    q, r = torch.linalg.qr(matrices)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    return q @ u, s, vh.mT


def _dominant(bases: Tensor, tolerance: float) -> tuple[Int64, Matrices]:
    """Rows (b, r) of orthonormal bases (b, n, r), and the coefficients (b, n, r) of all rows in them.

    Start: the rows that partial pivoting brings to the top, P A = [L_1; L_2] U, in which the others are
    L_2 L_1^-1.
    """
    _, n, r = bases.shape
    L, pivots = torch.linalg.lu_factor(bases)
    order = np.array([_order(n, swaps) for swaps in pivots.tolist()])
    below = torch.linalg.solve_triangular(L[:, :r], L[:, r:], upper=False, left=False, unitriangular=True)
    C = np.empty(bases.shape)
    each = np.arange(len(C))[:, None]
    C[each, order[:, :r]] = np.eye(r)
    C[each, order[:, r:]] = below.numpy()
    return _exchange(order[:, :r], C, tolerance)


def _order(n: int, swaps: Sequence[int]) -> list[int]:
    """Rows in the order that they have after LAPACK's swaps, counted from 1."""
    order = list(range(n))
    for i, swap in enumerate(swaps):
        order[i], order[swap - 1] = order[swap - 1], order[i]
    return order


def _exchange(rows: Int64, C: Matrices, tolerance: float) -> tuple[Int64, Matrices]:
    """Exchange rows until every coefficient is within the tolerance; each exchange is a rank-1 update."""
    b, _, r = C.shape
    for _ in range(100 + 10 * r):  # far above what was ever needed: rounding cannot make it cycle
        largest = np.abs(C).reshape(b, -1).argmax(axis=1)
        i, j = np.divmod(largest, r)
        pivot = C[np.arange(b), i, j]
        if (todo := np.flatnonzero(np.abs(pivot) > tolerance)).size == 0:
            break
        i, j, pivot = i[todo], j[todo], pivot[todo]
        change = C[todo, i]
        change[np.arange(todo.size), j] -= 1
        C[todo] -= (C[todo, :, j] / pivot[:, None])[:, :, None] * change[:, None, :]
        rows[todo, j] = i
    return rows, C


def _extended(rows: Int64, C: Matrices, count: int) -> Int64:
    """Further rows up to `count`, each of the largest norm in the coefficients of those before.

    Adding row i makes the coefficients C <- [C - C C_i^T C_i / l, C C_i^T / l] with l = 1 + |C_i|^2, and the
    rows' squared norms fall by (C C_i^T)^2 / l.
    """
    b, n, r = C.shape
    each = np.arange(b)
    grown = np.empty((b, n, count))
    grown[:, :, :r] = C
    norms = np.square(C).sum(axis=2)
    norms[each[:, None], rows] = -np.inf  # chosen ones are never chosen again
    found = [rows]
    for width in range(r, count):
        C = grown[:, :, :width]
        i = norms.argmax(axis=1)
        row = C[each, i]
        products = (C @ row[:, :, None])[:, :, 0]
        change = products / (1 + np.square(row).sum(axis=1))[:, None]
        C -= change[:, :, None] * row[:, None, :]
        grown[:, :, width] = change
        norms -= products * change
        norms[each, i] = -np.inf
        found.append(i[:, None])
    return np.concatenate(found, axis=1)
