"""Which combinations of samples a train is fitted with, and when; see `models.cpic.interpolate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.forward_set import ForwardSet, gathered
from models.cpic.interpolate import Combination, interpolate
from models.errors import refuse_non_finite
from models.tt.maxvol import RANK_TOLERANCE, leading
from models.tt.train import TensorTrain

INDISTINCT = 1e-6
"""Directions of a block, each of norm 1, of which less than this is left at the prefixes J_k are left out."""


def train_of(
    values: Float64[Tensor, "n ..."],
    forward: ForwardSet,
    rank: int | None = None,
    *,
    rank_tolerance: float = RANK_TOLERANCE,
    stepped: Callable[[], None] = lambda: None,
) -> TensorTrain:
    """The train of samples: interpolated where each bond has as many prefixes as suffixes, `rank` at most.

    Fitted otherwise, at all bonds, and where samples are vectors. Combinations are made from the values
    themselves, detached. Without a `rank` it is as large as the largest index set. `stepped` is called
    after each bond that is fitted.
    """
    sizes = [size for cross in forward.crosses for size in cross.shape[-2:]]
    rank = max(sizes, default=1) if rank is None else rank
    plain = values.ndim == 1 and forward.square and max(sizes, default=1) <= rank
    combined = None if plain else combinations(values, forward, rank, stepped)
    return interpolate(values, forward, combined, rank_tolerance=rank_tolerance)


@torch.no_grad()
def combinations(
    values: Float64[Tensor, "n ..."],
    forward: ForwardSet,
    rank: int,
    stepped: Callable[[], None] = lambda: None,
) -> list[Combination]:
    """Combinations of each bond for a fit of rank `rank`, or less where a bond has fewer keys. Detached.

    Directions that the prefixes J_k do not tell from larger ones become zero.
    """
    refuse_non_finite(values, "samples")
    vectors = values if values.ndim == 2 else values[:, None]
    found = []
    for block, cross in zip(forward.blocks[:-1], forward.crosses, strict=True):
        V, G = gathered(vectors, block), gathered(vectors, cross).flatten(-2)
        p, m = G.shape[-2:]
        _, s, X = leading(V.flatten(-4, -3).flatten(-2), min(rank, p, m))
        X = _told_apart(X, s, G)
        Q, _ = torch.linalg.qr(G @ X)
        found.append(Combination(Q, X))
        stepped()
    return found


def _told_apart(X: Float64[Tensor, "*batch m r"], s: Float64[Tensor, "*batch r"], G: Tensor) -> Tensor:
    """Combinations without those that, at the prefixes, are nearly made of the larger ones: zeros instead."""
    scale = torch.where(s > 0, 1 / torch.where(s > 0, s, 1.0), 0.0)[..., None, :]
    own = torch.linalg.qr(G @ (X * scale))[1].diagonal(dim1=-2, dim2=-1).abs()
    clear: Tensor = X * (own > INDISTINCT)[..., None, :]
    return clear
