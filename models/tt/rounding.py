"""TT-SVD and rounding (Oseledets 2011, Algorithms 1 and 2): quasi-optimal trains of low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidShape
from models.tt.train import TensorTrain

Matrix = Float64[Tensor, "m n"]

GRAM_DIGITS = 1e-14
"""Of a Gram matrix's eigenvalues over the largest: less is rounding."""


def tt_svd(tensor: Float64[Tensor, "..."], *, max_rank: int | None = None, eps: float = 0.0) -> TensorTrain:
    """Oseledets (2011), Algorithm 1: the train of a dense tensor by successive truncated SVDs.

    Without a rank cap the Frobenius error is at most `eps` times the tensor's norm (Theorem 2.2); with
    one, it is at most the root of the sum of squares of what each bond cuts off.
    """
    modes = tuple(tensor.shape)
    delta = _per_bond(eps, len(modes), float(torch.linalg.vector_norm(tensor)))
    cores, rank, rest = [], 1, tensor.to(torch.float64)
    for n in modes[:-1]:
        basis, rest = truncated_svd(rest.reshape(rank * n, -1), delta, max_rank)
        cores.append(basis.reshape(rank, n, -1))
        rank = basis.shape[1]
    return TensorTrain((*cores, rest.reshape(rank, modes[-1], 1)))


def rounded(
    train: TensorTrain, *, max_rank: int | Sequence[int] | None = None, eps: float = 0.0
) -> TensorTrain:
    """Oseledets (2011), Algorithm 2: the same tensor with smaller ranks; error bounds as for `tt_svd`.

    A rank cap is one for all inner bonds, or one for each.
    """
    cores = list(right_orthogonal(train).cores)
    delta = _per_bond(eps, len(cores), float(torch.linalg.vector_norm(cores[0])))
    for k in range(len(cores) - 1):
        r, n, _ = cores[k].shape
        cap = max_rank[k] if isinstance(max_rank, Sequence) else max_rank
        basis, carry = truncated_svd(cores[k].reshape(r * n, -1), delta, cap)
        cores[k] = basis.reshape(r, n, -1)
        cores[k + 1] = torch.einsum("ab,bnc->anc", carry, cores[k + 1])
    return TensorTrain(tuple(cores))


def right_orthogonal(train: TensorTrain) -> TensorTrain:
    """The same tensor with C_k C_k^T = I for the unfoldings (..., r, n r') of all cores but the first.

    Of one train, or of each of a batch.
    """
    cores = list(train.cores)
    for k in range(len(cores) - 1, 0, -1):
        *_, n, right = cores[k].shape
        q, carry = torch.linalg.qr(cores[k].flatten(-2).mT)
        cores[k] = q.mT.unflatten(-1, (n, right)).contiguous()
        cores[k - 1] = torch.einsum("...anb,...cb->...anc", cores[k - 1], carry)
    return TensorTrain(tuple(cores))


def truncated_svd(matrix: Matrix, delta: float, max_rank: int | None) -> tuple[Matrix, Matrix]:
    """(U, S V^T) of the smallest rank that leaves at most `delta` out, and of `max_rank` at most."""
    if max_rank is not None and max_rank < 1:
        raise InvalidShape(f"a rank cap must be at least 1, not {max_rank}")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    left_out = s.flip(0).square().cumsum(0).sqrt().flip(0)  # [k]: the norm of everything from k on
    rank = max(1, int((left_out > delta).sum()))
    rank = min(rank, max_rank or rank)
    return u[:, :rank], s[:rank, None] * vh[:rank]


def truncated_gram(
    matrix: Matrix, rank: int | None = None, *, floor: float = 0.0
) -> tuple[Matrix, Matrix, Float64[Tensor, " k"]]:
    """(U, U^T A, energies) by the eigenvectors of the smaller Gram matrix, for A with one long side.

    `energies` are all squared singular values, descending. Kept are those above `floor`, `rank` at most, one
    at least; of singular values below 1e-7 of the largest a Gram matrix knows nothing, and none is kept.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    energies, vectors = torch.linalg.eigh(matrix.mT @ matrix if tall else matrix @ matrix.mT)
    energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
    kept = int((energies > max(floor, GRAM_DIGITS * float(energies[0]))).sum())
    kept = max(1, min(kept, rank or kept))
    basis = torch.linalg.qr(matrix @ vectors[:, :kept])[0] if tall else vectors[:, :kept]
    return basis, basis.mT @ matrix, energies


def _per_bond(eps: float, dimensions: int, norm: float) -> float:
    """The share of the error that one of the d - 1 bonds may make."""
    return eps * norm / math.sqrt(max(dimensions - 1, 1))
