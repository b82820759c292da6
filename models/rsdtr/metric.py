"""A metric of kernels: errors along what an input hardly shows, or an output hardly tells, count for little.

One positive definite matrix A_k for each axis of a kernel W (O, I, *k) gives the norm

    ||W||_A = || W x_1 A_1^(1/2) x_2 A_2^(1/2) ... ||,

the Frobenius norm of the weighted kernel (x_k the product along axis k). A ring, an SVD or a sum of terms of
the weighted kernel is one of W in this metric, once the inverse roots are multiplied into its cores: ranks,
storage and the guarantee of the error stay (Kolda & Bader 2009, section 2.5, on products along axes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float64
from torch import Tensor

from models.rsdtr.canonical import Factors
from models.rsdtr.low_rank import LowRankShape
from models.rsdtr.ring import Mode, TensorRing
from models.rsdtr.spectra import Arrays
from models.rsdtr.steps import IN, OUT, SPATIAL

Matrix = Float64[Tensor, "g n n"]

DAMPING = 1e-3
"""Of a matrix's mean eigenvalue, added to all: nothing is free to change."""
NOTHING = 1e-20
"""The matrix, times the identity, of an axis along which nothing was seen."""


@dataclass(frozen=True, eq=False)
class KernelMetric:
    """A_k^(1/2) and A_k^(-1/2) of each axis of a batch of kernels, (g, n, n) or (1, n, n) for all groups."""

    roots: tuple[Matrix, ...]
    inverses: tuple[Matrix, ...]

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> Self:
        """By symmetric positive semidefinite matrices, one for each axis; they are damped."""
        pairs = [_roots(matrix) for matrix in matrices]
        return cls(tuple(root for root, _ in pairs), tuple(inverse for _, inverse in pairs))

    def weighted(self, arrays: Arrays) -> Arrays:
        """Kernels (g, o, i, *k) with the root of each axis multiplied in."""
        for axis, root in enumerate(self.roots):
            arrays = along(arrays, root, 1 + axis)
        return arrays

    def ring(self, ring: TensorRing) -> TensorRing:
        """The ring of kernels whose weighted ones have the given ring."""
        cores = (
            along(core, self._inverse(mode), 2)
            for core, mode in zip(ring.cores, ring.shape.modes, strict=True)
        )
        return TensorRing(ring.shape, tuple(cores))

    def low_rank(self, shape: LowRankShape, factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(second, first) factors of kernels whose weighted ones have the given ones."""
        second, first = factors
        second = self._unweighted(second, shape.rank, (OUT, None, *_placed(shape.late, shape)))
        return second, self._unweighted(first, shape.rank, (None, IN, *_placed(shape.early, shape)))

    def canonical(self, factors: Factors) -> Factors:
        """Factors of kernels whose weighted ones have the given ones."""
        a, b, c = factors
        spatial = self._inverse(tuple(range(SPATIAL, len(self.inverses))))
        return along(a, self.inverses[OUT], 1), along(b, self.inverses[IN], 1), along(c, spatial, 1)

    def _unweighted(self, factor: Tensor, rank: int, axes: tuple[int | None, ...]) -> Tensor:
        """A factor (g * n, m, *k) whose own axes are those of the kernel, where it has them."""
        rows = rank if axes[0] is None else self.roots[axes[0]].shape[1]
        made = factor.reshape(-1, rows, *factor.shape[1:])
        for place, axis in enumerate(axes):
            if axis is not None:
                made = along(made, self.inverses[axis], 1 + place)
        return made.flatten(0, 1)

    def _inverse(self, mode: Mode) -> Matrix:
        """Of the axes of a mode together, the last fastest."""
        first, *others = (self.inverses[axis] for axis in mode)
        for matrix in others:
            joined = torch.einsum("gij,gkl->gikjl", first, matrix)
            first = joined.flatten(3, 4).flatten(1, 2)
        return first


def along(arrays: Arrays, matrix: Matrix, place: int) -> Arrays:
    """Arrays times a matrix for each of the batch along one of their axes."""
    moved = arrays.movedim(place, 1)
    made = matrix.expand(len(arrays), -1, -1) @ moved.flatten(2)
    return made.reshape(moved.shape).movedim(1, place)


def _placed(spatial: tuple[int, ...], shape: LowRankShape) -> tuple[int | None, ...]:
    """The axes of the kernel that a factor's spatial axes are; None where it has one voxel alone."""
    return tuple(SPATIAL + k if k in spatial else None for k in range(len(shape.sizes) - SPATIAL))


def _roots(matrix: Matrix) -> tuple[Matrix, Matrix]:
    n = matrix.shape[-1]
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0)
    damping = (DAMPING * mean).clamp(min=NOTHING)
    damped = (matrix + matrix.mT) / 2 + damping[:, None, None] * torch.eye(n, dtype=matrix.dtype)
    energies, vectors = torch.linalg.eigh(damped)
    energies = torch.maximum(energies, damping[:, None])[:, None].sqrt()
    return (vectors * energies) @ vectors.mT, (vectors / energies) @ vectors.mT
