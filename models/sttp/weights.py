"""Weights of layers as matrices of outputs by inputs, one for each group (Obukhov et al., section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape
from models.sttp.shapes import Layout, sttp_layout, svdp_layout

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = nn.Linear | Convolution | Transposed

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
    return int(-(-share * min(weight.outputs, weight.columns) // 1))


def rank_within(
    weight: WeightShape, parameters: int, method: str, *, constant: bool = False, flatten_kernel: bool = True
) -> int:
    """The largest rank with at most so many degrees of freedom over all groups.

    Raises InvalidConfig, with both numbers, where rank 1 has more.
    """

    def needed(rank: int) -> int:
        layout = weight.layout(method, rank, constant=constant, flatten_kernel=flatten_kernel)
        return weight.groups * layout.parameters

    if needed(1) > parameters:
        raise InvalidConfig("parameters", parameters, f"at least {needed(1)}, which rank 1 has")
    low, high = 1, min(weight.outputs, weight.columns)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= parameters else (low, middle - 1)
    return low
