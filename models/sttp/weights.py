"""Weights of layers as matrices of outputs by inputs, one for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape
from models.sttp.shapes import Layout, sttp_layout, svdp_layout

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = nn.Linear | Convolution | Transposed

ROUNDING = 1e-9
"""Of a share of a rank."""

METHODS = ("svdp", "sttp")


@dataclass(frozen=True)
class WeightShape:
    """The shape of a weight: (outputs, inputs / groups, *kernel), or (inputs, outputs / groups, *kernel)
    where it is `transposed`. Raises InvalidShape for groups that do not divide the first axis.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1 or self.groups < 1 or self.shape[0] % self.groups:
            raise InvalidShape(
                f"a weight of shape {self.shape} in {self.groups} groups: it must have outputs, inputs and "
                "whole groups of the first axis"
            )

    @property
    def outputs(self) -> int:
        """Output channels of one group."""
        return self.shape[1] if self.transposed else self.shape[0] // self.groups

    @property
    def inputs(self) -> int:
        """Input channels of one group."""
        return self.shape[0] // self.groups if self.transposed else self.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel; () of a linear layer."""
        return self.shape[2:]

    @property
    def columns(self) -> int:
        """Of one group's matrix: inputs times the kernel's size."""
        return self.inputs * prod(self.kernel)

    @property
    def smaller(self) -> int:
        """The full rank of one group's matrix."""
        return min(self.outputs, self.columns)

    def matrices(self, weight: Tensor) -> Tensor:
        """(groups, outputs, columns) of a weight."""
        grouped = weight.reshape(self.groups, -1, *self.shape[1:])
        return (grouped.transpose(1, 2) if self.transposed else grouped).flatten(2)

    def weight(self, matrices: Tensor) -> Tensor:
        """The weight of its matrices, contiguous."""
        grouped = matrices.reshape(self.groups, self.outputs, self.inputs, *self.kernel)
        return (grouped.transpose(1, 2) if self.transposed else grouped).flatten(0, 1).contiguous()

    def layout(
        self, method: str, rank: int, *, constant: bool = False, flatten_kernel: bool = True
    ) -> Layout:
        """The layout of one group's matrix. Raises InvalidConfig for a method that is none of METHODS."""
        if method == "svdp":
            return svdp_layout(self.outputs, self.columns, rank, constant=constant)
        if method == "sttp":
            return sttp_layout(
                self.outputs,
                self.inputs,
                self.kernel,
                rank,
                constant=constant,
                flatten_kernel=flatten_kernel,
            )
        raise InvalidConfig("method", method, f"one of {', '.join(METHODS)}")


def weight_shape(layer: nn.Module) -> WeightShape:
    """Of a linear layer or a convolution. Raises InvalidShape, naming the class, for any other module."""
    if not isinstance(layer, Layer):
        raise InvalidShape(
            f"{type(layer).__name__} has no spectral weight: Linear, Conv1d, Conv2d, Conv3d and their "
            "transposed kinds have"
        )
    shape = tuple(layer.weight.shape)
    if isinstance(layer, nn.Linear):
        return WeightShape(shape)
    return WeightShape(shape, layer.groups, isinstance(layer, Transposed))


def rank_of_share(weight: WeightShape, share: float) -> int:
    """r = ceil(rho * min(outputs, columns)). Raises InvalidConfig for a share outside of (0, 1]."""
    if not 0 < share <= 1:
        raise InvalidConfig("rho", share, "in (0, 1]")
    return max(1, ceil(share * weight.smaller - ROUNDING))


def ranks_within(
    weights: Sequence[WeightShape],
    parameters: int,
    method: str,
    *,
    constant: bool = False,
    flatten_kernel: bool = True,
) -> list[int]:
    """The ranks of the largest common share rho with at most so many degrees of freedom in all layers.

    Raises InvalidConfig, with both numbers, where rank 1 in every layer has more.
    """

    def needed(ranks: Sequence[int]) -> int:
        return sum(
            weight.groups
            * weight.layout(method, rank, constant=constant, flatten_kernel=flatten_kernel).parameters
            for weight, rank in zip(weights, ranks, strict=True)
        )

    shares = sorted({1.0, *(r / w.smaller for w in weights for r in range(1, w.smaller))})
    if needed(least := [1] * len(weights)) > parameters:
        raise InvalidConfig("parameters", parameters, f"at least {needed(least)}, which rank 1 has")
    low, high = -1, len(shares) - 1
    while low < high:
        middle = (low + high + 1) // 2
        ranks = [rank_of_share(weight, shares[middle]) for weight in weights]
        low, high = (middle, high) if needed(ranks) <= parameters else (low, middle - 1)
    return least if low < 0 else [rank_of_share(weight, shares[low]) for weight in weights]
