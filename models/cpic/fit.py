"""Fitting: cores where bonds are oversampled, or where samples are vectors (all features of a voxel).

With V_k the unfolding (p n) x (q c) of the samples at core k, and S_k = V_k W_k an orthonormal basis of its
leading r directions,

    T = S_1 Y_1^+ S_2 Y_2^+ ... V_d,   Y_k = the rows J_k of S_k,   Y^+ = (Y^T Y)^-1 Y^T:

least squares over all prefixes, by solves with small matrices that are well conditioned since J_k has
(nearly) maximal volume. The combinations W_k are held fixed, as the indices are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.forward_set import ForwardSet, gathered
from models.cpic.interpolate import interpolate
from models.tt.maxvol import RANK_TOLERANCE, leading
from models.tt.train import TensorTrain

Weights = tuple[Float64[Tensor, "*batch m r"], ...]
"""W_k of the inner bonds."""
INDISTINCT = 1e-6
"""Directions whose values at the rows J_k are smaller than this, relative to the largest, are left out."""


def train_of(
    values: Float64[Tensor, "n ..."],
    forward: ForwardSet,
    rank: int | None = None,
    *,
    rank_tolerance: float = RANK_TOLERANCE,
) -> TensorTrain:
    """The train of samples: interpolated where that is possible, fitted with rank `rank` where it is not.

    The combinations of a fit are made from the values themselves, detached.
    """
    if forward.square and values.ndim == 1:
        return interpolate(values, forward, rank_tolerance=rank_tolerance)
    most = max((min(cross.shape[-2:]) for cross in forward.crosses), default=1) if rank is None else rank
    return fit(values, forward, combinations(values, forward, most, rank_tolerance=rank_tolerance))


def fit(values: Float64[Tensor, "n ..."], forward: ForwardSet, weights: Weights) -> TensorTrain:
    """The train that fits the samples, `values` of `forward.keys`, with combinations from `combinations`.

    Values (n, c) are all features of voxels: the train then has one more mode, of size c. Gradients with
    respect to `values` are exact for fixed indices and fixed combinations.
    """
    vectors = values if values.ndim == 2 else values[:, None]
    cores, carried = [], None
    for core, block in enumerate(forward.blocks):
        V = gathered(vectors, block)
        *batch, p, n, q, c = V.shape
        last = core == len(weights)
        S = V.reshape(*batch, p, n, c) if last else (V.reshape(*batch, p * n, q * c) @ weights[core])
        S = S.reshape(*batch, p, -1)
        if carried is not None:
            S = carried @ S
        cores.append(S.reshape(*batch, S.shape[-2], n, -1))
        if not last:
            G = gathered(vectors, forward.crosses[core])
            carried = _left_inverse(G.reshape(*G.shape[:-2], -1) @ weights[core])
    if values.ndim == 2 and values.shape[1] > 1:
        c = values.shape[1]
        eye = torch.eye(c, dtype=values.dtype, device=values.device)
        cores.append(eye.reshape(c, c, 1).expand(*cores[0].shape[:-3], c, c, 1))
    return TensorTrain(tuple(cores))


def combinations(
    values: Float64[Tensor, "n ..."],
    forward: ForwardSet,
    rank: int,
    *,
    rank_tolerance: float = RANK_TOLERANCE,
) -> Weights:
    """W_k for `fit`: V_k W_k is an orthonormal basis of the `rank` leading directions of V_k.

    Fewer where the samples carry fewer, or where the rows J_k do not tell them apart (in a batch, where its
    volumes differ in that: zeros); at least one, of zeros, where they carry none. Detached.
    """
    vectors = values.detach() if values.ndim == 2 else values.detach()[:, None]
    weights = []
    for block, cross in zip(forward.blocks[:-1], forward.crosses, strict=True):
        V, G = gathered(vectors, block), gathered(vectors, cross)
        *_, p, q, c = G.shape
        W = _leading_combination(V.flatten(-4, -3).flatten(-2), min(rank, p, q * c), rank_tolerance)
        weights.append(_told_apart(W, G.flatten(-2)))
    return tuple(weights)


def _leading_combination(V: Float64[Tensor, "*batch n m"], rank: int, rank_tolerance: float) -> Tensor:
    """W (..., m, r) with V W orthonormal; zero columns for directions below the tolerance."""
    _, s, v = leading(V, rank)
    carried = s > rank_tolerance * s[..., :1]
    combination: Tensor = v * torch.where(carried, 1 / torch.where(carried, s, 1.0), 0.0)[..., None, :]
    return combination


def _told_apart(W: Tensor, G: Tensor) -> Tensor:
    """W turned to the directions that the rows J_k tell apart; the others are zero, and last."""
    _, s, vh = torch.linalg.svd(G @ W, full_matrices=False)
    clear = s > INDISTINCT * s[..., :1]
    W = W @ (vh.mT * clear[..., None, :])
    most = int(clear.sum(dim=-1).max())
    return W[..., : max(1, most)]


def _left_inverse(Y: Float64[Tensor, "*batch p r"]) -> Float64[Tensor, "*batch r p"]:
    """(Y^T Y)^-1 Y^T; zero for columns of zeros."""
    gram = Y.mT @ Y
    empty = (Y.detach() == 0).all(dim=-2)
    inverse: Tensor = torch.linalg.solve(gram + torch.diag_embed(empty.to(Y.dtype)), Y.mT)
    return inverse
