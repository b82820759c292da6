"""Interpolation: cores from fibres, differentiable with fixed indices.

    T = C_1 G_1^-1 C_2 G_2^-1 ... C_d,   C_k = E(J_{k-1} x [n_k] x K_k),   G_k = E(J_k x K_k),

by LU solves, never by least squares or a pseudo-inverse, whose derivative loses the cube of the condition
number. Against its own block a cross has maximal volume, so that C_k G_k^-1 has no entry above the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.forward_set import ForwardSet, gathered
from models.errors import InvalidShape
from models.tt.maxvol import RANK_TOLERANCE, maxvol
from models.tt.train import TensorTrain
from models.types import Int64


def interpolate(
    values: Float64[Tensor, " n"], forward: ForwardSet, *, rank_tolerance: float = RANK_TOLERANCE
) -> TensorTrain:
    """The train that agrees with the samples, `values` of `forward.keys`, on the fibres that it is made from.

    Cores are C_k G_k^-1. Gradients with respect to `values` are exact for fixed indices. Where a cross G_k
    has numerical rank below its size, its bond is cut to rows and columns that carry it (in a batch: filled
    up with zeros), and T agrees with the samples as far as the tolerance goes; where it is zero, T is zero.
    Raises InvalidShape where a bond has more suffixes than prefixes or fewer.
    """
    for bond, cross in enumerate(forward.crosses):
        if cross.shape[-1] != cross.shape[-2]:
            raise InvalidShape(f"bond {bond}: {cross.shape[-2]} prefixes, but {cross.shape[-1]} suffixes")
    cores: list[Tensor] = [gathered(values, block) for block in forward.blocks]
    cuts = _cuts([gathered(values.detach(), cross) for cross in forward.crosses], rank_tolerance)
    crosses = [gathered(values, cross) for cross in forward.crosses]
    for bond, cut in cuts.items():
        crosses[bond] = torch.where(cut.inside, crosses[bond], cut.pairing)
        cores[bond] = cores[bond] * cut.columns[..., None, None, :]
        cores[bond + 1] = cores[bond + 1] * cut.rows[..., :, None, None]
    for members in _alike(cross_and_core for cross_and_core in zip(crosses, cores[:-1], strict=True)):
        G = torch.stack([crosses[bond] for bond in members])
        C = torch.stack([cores[bond] for bond in members])
        quotients = torch.linalg.solve(G, C.reshape(*G.shape[:-2], -1, G.shape[-1]), left=False)
        for bond, quotient in zip(members, quotients.reshape(C.shape).unbind(), strict=True):
            cores[bond] = quotient
    if not cores[0].shape[:-3]:
        for bond, cut in cuts.items():
            kept = torch.nonzero(cut.kept)[:, 0]
            cores[bond] = cores[bond][..., kept]
            cores[bond + 1] = cores[bond + 1][kept]
    return TensorTrain(tuple(cores))


@dataclass(frozen=True, eq=False)
class _Cut:
    """What is left of a rank-deficient cross: `rows` and `columns` (..., r) are 1 where they are kept.

    The others are paired off with ones, so that the cross can be solved with and T does not see them. `kept`
    are the rows, but at least one, so that a bond remains.
    """

    rows: Tensor
    columns: Tensor
    inside: Tensor
    pairing: Tensor
    kept: Tensor


def _cuts(crosses: Sequence[Tensor], rank_tolerance: float) -> dict[int, _Cut]:
    """The cuts at the bonds that need one."""
    cuts = {}
    for members in _alike((G,) for G in crosses):
        s = torch.linalg.svdvals(torch.stack([crosses[bond] for bond in members]))
        deficient = (s[..., -1] <= rank_tolerance * s[..., 0]).reshape(len(members), -1).any(dim=1)
        for bond, cut in zip(members, deficient.tolist(), strict=True):
            if cut:
                cuts[bond] = _cut(crosses[bond], rank_tolerance)
    return cuts


def _cut(G: Float64[Tensor, "*batch r r"], rank_tolerance: float) -> _Cut:
    size = G.shape[-1]
    rows, columns = np.zeros((2, *G.shape[:-1]))
    pairing = np.zeros(tuple(G.shape))
    for at in np.ndindex(*G.shape[:-2]):
        J, K = _pivots(G[at], rank_tolerance)
        rows[at][J], columns[at][K] = 1, 1
        others = np.setdiff1d(np.arange(size), J), np.setdiff1d(np.arange(size), K)
        pairing[at][others] = 1
    kept = rows.copy()
    kept[..., 0] = np.where(rows.any(axis=-1), rows[..., 0], 1)
    to_device = [torch.from_numpy(part).to(G.device) for part in (rows, columns, pairing, kept)]
    row, column, paired, keep = to_device
    return _Cut(row, column, (row[..., :, None] * column[..., None, :]).bool(), paired, keep)


def _pivots(G: Float64[Tensor, "r r"], rank_tolerance: float) -> tuple[Int64, Int64]:
    """Rows and columns that span G: all of them for full rank, none for zeros."""
    rows = maxvol(G, rank_tolerance=rank_tolerance).rows
    if len(rows) == len(G):
        return np.arange(len(G)), np.arange(len(G))
    if len(rows) == 0:
        return rows, rows
    return rows, maxvol(G[rows].T, rank_tolerance=0.0).rows


def _alike(groups: Iterable[tuple[Tensor, ...]]) -> Iterable[list[int]]:
    """The numbers of the tuples whose tensors have equal shapes, together."""
    found: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, tensors in enumerate(groups):
        found.setdefault(tuple(tensor.shape for tensor in tensors), []).append(number)
    return found.values()
