"""TT-SVD of a whole tensor by Gram matrices, with a certificate of how near it is to the best train.

Oseledets (2011), Algorithm 1, with the eigenvectors of the smaller Gram matrix of each unfolding. What bond b
discards is a tail t_b of squared singular values. The frames are orthonormal and nested, so the squared error
is the sum of the t_b (Theorem 2.2 has at most); and no train of these ranks, however it is found, has a
smaller squared error than the largest tail of an unfolding of the tensor itself (Eckart & Young 1936).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import InvalidShape, refuse_non_finite
from models.tt.rounding import truncated_gram
from models.tt.train import TensorTrain

EXACT_SIDE = 1024
"""Of an unfolding's shorter side, up to which its own singular values are found for the lower bound."""

Floor = Callable[[int, int], float]
"""The squared singular value of an m x n unfolding, up to which a direction is noise."""


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A train, and what is certain of its squared error (of the values as they were given).

    `tails` are what the bonds discarded, one each. The error is at most `bound_high`, their sum; that of any
    train of the same ranks is at least `bound_low`.
    """

    train: TensorTrain
    tails: tuple[float, ...]
    bound_low: float

    @property
    def bound_high(self) -> float:
        """The sum of the tails."""
        return sum(self.tails)


def factorised(
    tensor: Float[Tensor, "*modes"],
    *,
    max_rank: int | Sequence[int] | None = None,
    floor: Floor | None = None,
) -> Factorisation:
    """The train of a dense tensor, left-orthogonal, of ranks `max_rank` at most: one for all, or by bond.

    With `floor` directions that are no stronger are left out too (`models.putt.denoising`). Raises
    InvalidShape for ranks that are none, NonFinite for values that are not.
    """
    train, tails = tt_svd_by_gram(tensor, max_rank=max_rank, floor=floor)
    whole = tensor.to(torch.float64)
    low = [_least_lost(whole, b, *at) for b, at in enumerate(zip(train.ranks, tails, strict=True), 1)]
    return Factorisation(train, tails, max(low, default=0.0))


def tt_svd_by_gram(
    tensor: Float[Tensor, "*modes"],
    *,
    max_rank: int | Sequence[int] | None = None,
    floor: Floor | None = None,
) -> tuple[TensorTrain, tuple[float, ...]]:
    """The same train and its tails, without the lower bound, which costs as much again."""
    modes = tuple(tensor.shape)
    caps = rank_caps(modes, max_rank)
    refuse_non_finite(tensor, "values")
    cores, tails, rank, rest = [], [], 1, tensor.to(torch.float64)
    for n, cap in zip(modes[:-1], caps, strict=True):
        unfolding = rest.reshape(rank * n, -1)
        least = 0.0 if floor is None else floor(*unfolding.shape)
        basis, rest, energies = truncated_gram(unfolding, cap, floor=least)
        cores.append(basis.reshape(rank, n, -1))
        rank = basis.shape[1]
        tails.append(float(energies[rank:].sum()))
    return TensorTrain((*cores, rest.reshape(rank, modes[-1], 1))), tuple(tails)


def rank_caps(modes: Sequence[int], max_rank: int | Sequence[int] | None) -> tuple[int, ...]:
    """The largest ranks of the inner bonds: what the modes allow, and `max_rank` at most.

    Raises InvalidShape for a rank below 1, and for another number of ranks than of bonds.
    """
    bonds = range(1, len(modes))
    full = [min(math.prod(modes[:bond]), math.prod(modes[bond:])) for bond in bonds]
    wanted = [max_rank] * len(full) if max_rank is None or isinstance(max_rank, int) else list(max_rank)
    if len(wanted) != len(full):
        raise InvalidShape(f"{len(wanted)} ranks for a train of {len(full)} bonds")
    for bond, rank in enumerate(wanted, 1):
        if rank is not None and rank < 1:
            raise InvalidShape(f"bond {bond}: a rank cap must be at least 1, not {rank}")
    return tuple(own if rank is None else min(own, rank) for own, rank in zip(full, wanted, strict=True))


def _least_lost(tensor: Tensor, bond: int, rank: int, tail: float) -> float:
    """What every train of this rank at this bond loses at least: the unfolding's own tail.

    The tail that TT-SVD met there is of a projection of the unfolding, and so no larger: it stands in where
    the unfolding's shorter side is long.
    """
    rows = math.prod(tensor.shape[:bond])
    unfolding = tensor.reshape(rows, -1)
    if min(unfolding.shape) > EXACT_SIDE:
        return tail
    short = unfolding if rows <= unfolding.shape[1] else unfolding.mT
    energies = torch.linalg.eigvalsh(short @ short.mT).clamp(min=0)
    return max(tail, float(energies[: len(energies) - rank].sum()))
