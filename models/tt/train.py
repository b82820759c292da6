"""A tensor as a train of cores (Oseledets, Tensor-Train Decomposition, SIAM J. Sci. Comput. 33, 2011).

Cores may have leading batch axes: a batch of trains with the same modes and ranks is one `TensorTrain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from models.errors import InvalidShape

ROWS_PER_SLICE = 16
"""Of a core, from which on it is faster to multiply with whole slices than to gather one for each row."""


@dataclass(frozen=True, eq=False)
class TensorTrain:
    """T(i_1 ... i_d) = C_1[:, i_1, :] C_2[:, i_2, :] ... C_d[:, i_d, :].

    `cores[k]` has shape (..., r_k, n_k, r_{k+1}) with r_0 = r_d = 1, in float64; `...` are the batch axes,
    equal in all cores. Raises InvalidShape, naming the core or the bond, when the cores do not fit together.
    """

    cores: tuple[Float64[Tensor, "*batch left n right"], ...]

    def __post_init__(self) -> None:
        if not self.cores:
            raise InvalidShape("a tensor train needs at least one core")
        for k, core in enumerate(self.cores):
            if core.ndim < 3 or core.dtype != torch.float64 or 0 in core.shape:
                raise InvalidShape(
                    f"core {k} must be a non-empty float64 tensor (..., r, n, r'), not {core.dtype} of shape "
                    f"{tuple(core.shape)}"
                )
            if core.shape[:-3] != self.batch:
                raise InvalidShape(f"core {k} has batch axes {tuple(core.shape[:-3])}, not {self.batch}")
        left = [core.shape[-3] for core in self.cores] + [1]
        right = [1] + [core.shape[-1] for core in self.cores]
        for bond, (before, after) in enumerate(zip(right, left, strict=True)):
            if before != after:
                raise InvalidShape(f"bond {bond}: rank {before} on its left, {after} on its right")

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes' sizes; () for one train."""
        return tuple(self.cores[0].shape[:-3])

    @property
    def modes(self) -> tuple[int, ...]:
        """The sizes n_1 ... n_d."""
        return tuple(core.shape[-2] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the inner bonds, r_1 ... r_{d-1}."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    def __getitem__(self, number: int | slice) -> TensorTrain:
        """One train of a batch, or a part of it."""
        return TensorTrain(tuple(core[number] for core in self.cores))

    def detach(self) -> TensorTrain:
        """The same train, without its history."""
        return TensorTrain(tuple(core.detach() for core in self.cores))

    def at(self, indices: Int64[Tensor, "m d"]) -> Float64[Tensor, "*batch m"]:
        """The entries at many multi-indices. Costs O(m d r^2)."""
        return self.fibres_at(indices)

    def fibres_at(self, indices: Int64[Tensor, "m k"]) -> Float64[Tensor, "*batch m *rest"]:
        """All entries whose first k indices are given: (..., m, n_{k+1}, ..., n_d)."""
        rows = self.cores[0].new_ones(*self.batch, len(indices), 1)
        given = indices.shape[1]
        for k, core in enumerate(self.cores[:given]):
            rows = _advanced(rows, core, indices[:, k])
        for core in self.cores[given:]:
            rows = rows.flatten(len(self.batch), -2) @ core.flatten(-2)
            rows = rows.reshape(*self.batch, -1, core.shape[-1])
        return rows.reshape(*self.batch, len(indices), *self.modes[given:])

    def full(self) -> Float64[Tensor, "..."]:
        """Every entry, as a dense tensor of shape (..., *modes): for small tensors."""
        dense = self.cores[0].new_ones(*self.batch, 1, 1)
        for core in self.cores:
            dense = dense @ core.reshape(*self.batch, core.shape[-3], -1)
            dense = dense.reshape(*self.batch, -1, core.shape[-1])
        return dense.reshape(*self.batch, *self.modes)

    def inner(self, other: TensorTrain) -> Float64[Tensor, "*batch"]:
        """The Frobenius inner product, contracted from left to right: O(d n r^3). Batches go in step."""
        if self.modes != other.modes:
            raise InvalidShape(f"no inner product between modes {self.modes} and {other.modes}")
        environment = self.cores[0].new_ones(1, 1)
        for ours, theirs in zip(self.cores, other.cores, strict=True):
            half = torch.einsum("...ab,...anc->...bnc", environment, ours)
            environment = torch.einsum("...bnc,...bnd->...cd", half, theirs)
        return environment[..., 0, 0]

    def norm(self) -> Float64[Tensor, "*batch"]:
        """The Frobenius norm, from the inner product: values below 1e-8 of the largest term are noise."""
        return self.inner(self).clamp(min=0).sqrt()


def stacked(trains: Sequence[TensorTrain]) -> TensorTrain:
    """Single trains of the same modes as one batch; smaller ranks are filled up with zeros.

    Raises InvalidShape for no trains, batches, or modes that differ.
    """
    if not trains:
        raise InvalidShape("a batch needs at least one train")
    for number, train in enumerate(trains):
        if train.batch or train.modes != trains[0].modes:
            raise InvalidShape(
                f"train {number} has modes {train.modes} and batch axes {train.batch}; to be stacked, each "
                f"must be one train of modes {trains[0].modes}"
            )
    ranks = [1, *(max(ranks) for ranks in zip(*(train.ranks for train in trains), strict=True)), 1]
    return TensorTrain(
        tuple(
            torch.stack([_filled(train.cores[k], left, right) for train in trains])
            for k, (left, right) in enumerate(pairwise(ranks))
        )
    )


def _advanced(
    rows: Float64[Tensor, "*batch m l"], core: Float64[Tensor, "*batch l n r"], digits: Int64[Tensor, " m"]
) -> Float64[Tensor, "*batch m r"]:
    """Each row times the slice of the core that its digit names; slice by slice where there are many rows."""
    n = core.shape[-2]
    if len(digits) < ROWS_PER_SLICE * n:
        return torch.einsum("...ml,...lmr->...mr", rows, core[..., digits, :])
    order = digits.argsort()
    counts = torch.bincount(digits, minlength=n).tolist()
    parts = torch.split(rows[..., order, :], counts, dim=-2)
    products = [part @ core[..., digit, :] for digit, part in enumerate(parts)]
    return torch.cat(products, dim=-2)[..., order.argsort(), :]


def _filled(core: Tensor, left: int, right: int) -> Tensor:
    """The core with zeros up to the ranks (left, right)."""
    before, _, after = core.shape
    if (before, after) == (left, right):
        return core
    return torch.nn.functional.pad(core, (0, right - after, 0, 0, 0, left - before))
