"""A tensor as a train of cores (Oseledets, Tensor-Train Decomposition, SIAM J. Sci. Comput. 33, 2011)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from models.errors import InvalidShape


@dataclass(frozen=True, eq=False)
class TensorTrain:
    """T(i_1 ... i_d) = C_1[:, i_1, :] C_2[:, i_2, :] ... C_d[:, i_d, :].

    `cores[k]` has shape (r_k, n_k, r_{k+1}) with r_0 = r_d = 1, in float64.
    Raises InvalidShape, naming the core or the bond, when the cores do not fit together.
    """

    cores: tuple[Float64[Tensor, "left n right"], ...]

    def __post_init__(self) -> None:
        if not self.cores:
            raise InvalidShape("a tensor train needs at least one core")
        for k, core in enumerate(self.cores):
            if core.ndim != 3 or core.dtype != torch.float64 or 0 in core.shape:
                raise InvalidShape(
                    f"core {k} must be a non-empty float64 tensor (r, n, r'), not {core.dtype} of shape "
                    f"{tuple(core.shape)}"
                )
        left = [core.shape[0] for core in self.cores] + [1]
        right = [1] + [core.shape[2] for core in self.cores]
        for bond, (before, after) in enumerate(zip(right, left, strict=True)):
            if before != after:
                raise InvalidShape(f"bond {bond}: rank {before} on its left, {after} on its right")

    @property
    def modes(self) -> tuple[int, ...]:
        """The sizes n_1 ... n_d."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the inner bonds, r_1 ... r_{d-1}."""
        return tuple(core.shape[2] for core in self.cores[:-1])

    def at(self, indices: Int64[Tensor, "m d"]) -> Float64[Tensor, " m"]:
        """The entries at many multi-indices. Costs O(m d r^2)."""
        rows = self.cores[0].new_ones(len(indices), 1)
        for k, core in enumerate(self.cores):
            rows = torch.einsum("ml,lmr->mr", rows, core[:, indices[:, k], :])
        return rows[:, 0]

    def full(self) -> Float64[Tensor, "..."]:
        """Every entry, as a dense tensor of shape `modes`: for small tensors."""
        dense = self.cores[0].new_ones(1, 1)
        for core in self.cores:
            dense = (dense @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
        return dense.reshape(self.modes)

    def inner(self, other: TensorTrain) -> Float64[Tensor, ""]:
        """The Frobenius inner product, contracted from left to right: O(d n r^3)."""
        if self.modes != other.modes:
            raise InvalidShape(f"no inner product between modes {self.modes} and {other.modes}")
        environment = self.cores[0].new_ones(1, 1)
        for ours, theirs in zip(self.cores, other.cores, strict=True):
            half = torch.einsum("ab,anc->bnc", environment, ours)
            environment = torch.einsum("bnc,bnd->cd", half, theirs)
        return environment[0, 0]

    def norm(self) -> Float64[Tensor, ""]:
        """The Frobenius norm, from the inner product: values below 1e-8 of the largest term are noise."""
        return self.inner(self).clamp(min=0).sqrt()
