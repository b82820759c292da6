"""From fibres to cores: T = C_1 G_1^-1 C_2 ... G_{d-1}^-1 C_d, differentiable with fixed indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.index_sets import TRIVIAL, IndexSets
from models.errors import InvalidShape
from models.tt.maxvol import RANK_TOLERANCE, maxvol
from models.tt.qtt import Layout
from models.tt.train import TensorTrain
from models.types import Int64


@dataclass(frozen=True, eq=False)
class ForwardSet:
    """The samples that an interpolant is made from, each once.

    `keys` (n,) are distinct and ascending. `blocks[k]` (r_{k-1}, n_k, r_k) and `crosses[k]` (r_k, r_k) say
    where in `keys` the entries of C_k = E(J_{k-1} x [n_k] x K_k) and G_k = E(J_k x K_k) stand.
    """

    keys: Int64
    blocks: tuple[Int64, ...]
    crosses: tuple[Int64, ...]

    @classmethod
    def of(cls, layout: Layout, sets: IndexSets) -> ForwardSet:
        """The forward set of index sets. Raises InvalidShape where a bond is not square or not nested."""
        for bond, (J, K) in enumerate(zip(sets.left, sets.right, strict=True)):
            if len(J) != len(K):
                raise InvalidShape(f"bond {bond}: {len(J)} prefixes, but {len(K)} suffixes")
        blocks = [sets.block(layout, core) for core in range(len(layout.modes))]
        crosses = [J[:, None] + K for J, K in zip(sets.left, sets.right, strict=True)]
        keys = np.unique(np.concatenate([block.ravel() for block in blocks]))
        for bond, cross in enumerate(crosses):
            if not np.isin(cross, blocks[bond]).all():
                raise InvalidShape(f"bond {bond}: its prefixes do not continue those before")
            if not np.isin(cross, blocks[bond + 1]).all():
                raise InvalidShape(f"bond {bond}: its suffixes do not continue those after")
        return cls(
            keys,
            tuple(np.searchsorted(keys, block) for block in blocks),
            tuple(np.searchsorted(keys, cross) for cross in crosses),
        )

    @property
    def samples(self) -> int:
        """Samples with repetition: the entries of all blocks."""
        return sum(block.size for block in self.blocks)


def interpolate(
    values: Float64[Tensor, " n"], forward: ForwardSet, *, rank_tolerance: float = RANK_TOLERANCE
) -> TensorTrain:
    """The train that agrees with the samples, `values` of `forward.keys`, on the fibres that it is made from.

    Cores are C_k G_k^-1 by an LU solve, never by least squares or a pseudo-inverse, whose derivative loses
    the cube of the condition number. Gradients with respect to `values` are exact for fixed indices.
    Where a cross G_k has numerical rank below its size, its bond is cut to rows and columns that carry it,
    and T agrees with the samples as far as the tolerance goes; where it is zero, a rank of 1 remains, and T
    is zero.
    """
    crosses = [values[_on(cross, values)] for cross in forward.crosses]
    kept = [_pivots(G.detach(), rank_tolerance) for G in crosses]
    rows = [TRIVIAL] + [rows for rows, _ in kept]
    columns = [columns for _, columns in kept] + [TRIVIAL]
    cores = [
        values[_on(block[J][:, :, K], values)]
        for block, J, K in zip(forward.blocks, rows, columns, strict=True)
    ]
    for bond, (G, (J, K)) in enumerate(zip(crosses, kept, strict=True)):
        cores[bond] = _divided(cores[bond], G[J][:, K])
    return TensorTrain(tuple(cores))


def _on(positions: Int64, values: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(values.device)


def _pivots(G: Float64[Tensor, "r r"], rank_tolerance: float) -> tuple[Int64, Int64]:
    """Rows and columns that span G: all of them for full rank, and at least one."""
    rows = maxvol(G, rank_tolerance=rank_tolerance).rows
    if len(rows) == len(G):
        return np.arange(len(G)), np.arange(len(G))
    if len(rows) == 0:
        return TRIVIAL, TRIVIAL
    return rows, maxvol(G[rows].T, rank_tolerance=0.0).rows


def _divided(C: Float64[Tensor, "l n r"], G: Float64[Tensor, "r r"]) -> Float64[Tensor, "l n r"]:
    """C G^-1; zero where G is."""
    if not bool(G.any()):
        return torch.zeros_like(C)
    quotient: Tensor = torch.linalg.solve(G, C.reshape(-1, len(G)), left=False)
    return quotient.reshape(C.shape)
