"""Truncated factorisations A = U C of matrices by their smaller Gram matrix, in float64.

Of singular values below 1e-8 of the largest a Gram matrix knows nothing; tolerances here are above 1e-6,
and what rounding may hide is taken from them (`ROUNDING`). A batch of matrices is cut to one common rank,
and what is left out is the sum over the batch. Signs are fixed: the largest component of a left vector is
positive.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidConfig

Matrices = Float64[Tensor, "g m n"]

SMALLEST_EPS = 1e-6
ROUNDING = 1e-14
"""Of an array's squared norm: more than what sums of squares in float64 err by."""


def refuse_eps(eps: float) -> None:
    """Raise InvalidConfig for a tolerance that is none, or finer than Gram matrices tell."""
    if not SMALLEST_EPS <= eps < 1:
        raise InvalidConfig("eps", eps, f"a relative error, at least {SMALLEST_EPS:g} and below 1")


def divisors(number: int) -> list[int]:
    """All divisors, rising."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def signed(vectors: Matrices) -> tuple[Matrices, Float64[Tensor, "g k"]]:
    """Columns turned so that the largest component of each is positive, and what they were turned by."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    signs = vectors.gather(1, largest).sign()
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    return vectors * signs, signs[:, 0]


def gram(matrices: Matrices) -> Matrices:
    """A A^T or A^T A, whichever is smaller."""
    wide = matrices.shape[1] <= matrices.shape[2]
    return matrices @ matrices.mT if wide else matrices.mT @ matrices


@dataclass(frozen=True)
class Tails:
    """What each rank leaves out at best: `rising[k]` is the energy of the k + 1 smallest."""

    rising: list[float]

    @classmethod
    def of(cls, matrices: Matrices) -> Tails:
        """Of a batch of matrices at one common rank, by the eigenvalues of their Gram matrices."""
        energies = torch.linalg.eigvalsh(gram(matrices))
        return cls(energies.clamp(min=0).sum(0).cumsum(0).tolist())

    def rank(self, allowed: float) -> int:
        """The smallest rank that leaves at most `allowed` out; 1 at least."""
        return max(1, len(self.rising) - bisect_right(self.rising, allowed))

    def left_out(self, rank: int) -> float:
        """The energy beyond a rank."""
        return self.rising[len(self.rising) - rank - 1] if rank < len(self.rising) else 0.0


def cut(matrices: Matrices, rank: int) -> tuple[Matrices, Matrices]:
    """(U, U^T A) of this rank: U has orthonormal columns that span the leading left singular vectors."""
    vectors = torch.linalg.eigh(gram(matrices))[1].flip(-1)[..., :rank]
    wide = matrices.shape[1] <= matrices.shape[2]
    basis, _ = signed(vectors if wide else torch.linalg.qr(matrices @ vectors)[0])
    return basis, basis.mT @ matrices


def remainder(matrices: Matrices, rank: int) -> Matrices:
    """U^T A of such a cut up to a rotation of its rows, for less: who only counts ranks needs no more."""
    energies, vectors = torch.linalg.eigh(gram(matrices))
    leading: Tensor = vectors[..., -rank:]
    if matrices.shape[1] <= matrices.shape[2]:
        return leading.mT @ matrices
    weights: Tensor = energies[:, -rank:, None].clamp(min=0).sqrt()
    return weights * leading.mT
