"""Cores from samples, differentiable with fixed indices.

    T = C_1 M_1^-1 C_2 M_2^-1 ... C_d.

*Interpolation* (Oseledets & Tyrtyshnikov 2010): C_k = E(J_{k-1} x [n_k] x K_k), M_k = E(J_k x K_k), with as
many prefixes as suffixes. Against the block that it was chosen in a cross has maximal volume: no entry of
C_k M_k^-1 is above the tolerance of maxvol after a half-sweep to the right, and none of M_k^-1 C_{k+1} after
one to the left.

*Fitting*, where bonds are oversampled, or where samples are vectors (all features of a voxel, as further
columns): with orthonormal combinations of the prefixes, Q_k, and of the suffixes and features, X_k,

    C_k = Q_{k-1}^T E(J_{k-1} x [n_k] x K_k) X_k,   M_k = Q_k^T E(J_k x K_k) X_k.

X_k are the leading directions of E(J_{k-1} x [n_k] x K_k), and Q_k spans what they are at the prefixes J_k:
so T is fitted to all of those by least squares. Combinations are held fixed, as the indices are.

Quotients are made by LU solves, never by least squares or a pseudo-inverse, whose derivative loses the cube
of the condition number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.forward_set import ForwardSet, gathered
from models.errors import InvalidShape, refuse_non_finite
from models.tt.maxvol import RANK_TOLERANCE, maxvol
from models.tt.train import TensorTrain
from models.types import Int64


@dataclass(frozen=True, eq=False)
class Combination:
    """Of a bond's prefixes, `rows` Q (..., p, r); of its suffixes and features, `columns` X (..., q c, r)."""

    rows: Float64[Tensor, "*batch p r"]
    columns: Float64[Tensor, "*batch m r"]


def interpolate(
    values: Float64[Tensor, "n ..."],
    forward: ForwardSet,
    combinations: Sequence[Combination] | None = None,
    *,
    rank_tolerance: float = RANK_TOLERANCE,
) -> TensorTrain:
    """The train made from the samples, `values` of `forward.keys`; without combinations it agrees with them.

    Values (n, c) are all features of voxels, and need combinations: the train then has one more mode, of
    size c, if c is not 1.
    Gradients with respect to `values` are exact for fixed indices and combinations. Where M_k has numerical
    rank below its size, its bond is cut to rows and columns that carry it (in a batch: filled up with zeros):
    T may then differ from samples at the others, which show a rank that M_k does not. Where it is zero, T is
    zero.
    Raises InvalidShape where a bond is not square and is not combined, and NonFinite.
    """
    refuse_non_finite(values, "samples")
    if combinations is None:
        cores, crosses = _raw(values, forward)
    else:
        cores, crosses = _combined(values, forward, combinations)
    cuts = _cuts([M.detach() for M in crosses], rank_tolerance)
    cores = _quotients(*_masked(cores, crosses, cuts))
    if cores[0].ndim == 3:
        cores = _trimmed(cores, cuts)
    return TensorTrain((*cores[:-1], *_with_features(cores[-1])))


def _raw(values: Tensor, forward: ForwardSet) -> tuple[list[Tensor], list[Tensor]]:
    """C_k (..., p, n, q) and M_k of samples as they are."""
    if values.ndim != 1:
        raise InvalidShape(f"samples of shape {tuple(values.shape)} are vectors: give their combinations")
    for bond, cross in enumerate(forward.crosses):
        if cross.shape[-1] != cross.shape[-2]:
            raise InvalidShape(f"bond {bond}: {cross.shape[-2]} prefixes, but {cross.shape[-1]} suffixes")
    return (
        [gathered(values, block) for block in forward.blocks],
        [gathered(values, cross) for cross in forward.crosses],
    )


def _combined(
    values: Tensor, forward: ForwardSet, combinations: Sequence[Combination]
) -> tuple[list[Tensor], list[Tensor]]:
    """C_k and M_k of combined samples."""
    vectors = values if values.ndim == 2 else values[:, None]
    cores, crosses = [], []
    for core, block in enumerate(forward.blocks):
        C = gathered(vectors, block)
        if core > 0:
            C = torch.einsum("...pr,...pnqc->...rnqc", combinations[core - 1].rows, C)
        C = C.flatten(-2)
        if core < len(combinations):
            X = combinations[core].columns
            C = C @ X[..., None, :, :]
            G = gathered(vectors, forward.crosses[core]).flatten(-2)
            crosses.append(combinations[core].rows.mT @ (G @ X))
        cores.append(C)
    return cores, crosses


def _with_features(core: Tensor) -> list[Tensor]:
    """The last core (..., r, n, c), and another one for the features if there are several."""
    c = core.shape[-1]
    if c == 1:
        return [core]
    eye = torch.eye(c, dtype=core.dtype, device=core.device).reshape(c, c, 1)
    return [core, eye.expand(*core.shape[:-3], c, c, 1)]


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


def _masked(
    cores: Sequence[Tensor], crosses: Sequence[Tensor], cuts: Mapping[int, _Cut]
) -> tuple[list[Tensor], list[Tensor]]:
    """Zeros for the rows and columns that are cut, which are paired off in the crosses."""
    cores, crosses = list(cores), list(crosses)
    for bond, cut in cuts.items():
        crosses[bond] = torch.where(cut.inside, crosses[bond], cut.pairing)
        cores[bond] = cores[bond] * cut.columns[..., None, None, :]
        cores[bond + 1] = cores[bond + 1] * cut.rows[..., :, None, None]
    return cores, crosses


def _quotients(cores: Sequence[Tensor], crosses: Sequence[Tensor]) -> list[Tensor]:
    """C_k M_k^-1, those of equal shapes together, and the last core."""
    quotients = list(cores)
    for members in _alike(zip(crosses, cores[:-1], strict=True)):
        M = torch.stack([crosses[bond] for bond in members])
        C = torch.stack([cores[bond] for bond in members])
        solved = torch.linalg.solve(M, C.reshape(*M.shape[:-2], -1, M.shape[-1]), left=False)
        for bond, quotient in zip(members, solved.reshape(C.shape).unbind(), strict=True):
            quotients[bond] = quotient
    return quotients


def _trimmed(cores: Sequence[Tensor], cuts: Mapping[int, _Cut]) -> list[Tensor]:
    """The cores of one train without the rows that were cut."""
    cores = list(cores)
    for bond, cut in cuts.items():
        kept = torch.nonzero(cut.kept)[:, 0]
        cores[bond] = cores[bond][..., kept]
        cores[bond + 1] = cores[bond + 1][kept]
    return cores


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
