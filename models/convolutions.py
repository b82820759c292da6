"""The geometry of convolutions: what a layer reads and writes, and what that costs.

A convolution of any number of spatial axes, forward or transposed, in groups or not, is a kernel
W (O, I / groups, *k) and what is done along each axis: padding, dilation, stride. Axes do not know of each
other: a kernel that is a product over axes may be applied one axis after the other, each with its own part
of the geometry, for every padding mode. A linear layer is the case of no axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidShape, refuse_non_finite

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
FORWARD: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
CONVOLVE_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """A convolution without its kernel's values.

    `padding` is what is put (before, after) each axis, of a transposed convolution what is cut off there;
    `output_padding` is of transposed ones. A linear layer has no axes.
    """

    inputs: int
    outputs: int
    kernel: Sizes = ()
    stride: Sizes = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: Sizes = ()
    groups: int = 1
    transposed: bool = False
    output_padding: Sizes = ()
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        if self.inputs % self.groups or self.outputs % self.groups:
            raise InvalidShape(
                f"{self.inputs} and {self.outputs} channels are no multiples of {self.groups} groups"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise InvalidShape(f"a transposed convolution pads with zeros, not by {self.padding_mode!r}")

    @property
    def axes(self) -> range:
        """The spatial axes, 0 for the first."""
        return range(len(self.kernel))

    @property
    def kernel_shape(self) -> Sizes:
        """Of the kernel as an array: (O, I / groups, *k)."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def block_shape(self) -> Sizes:
        """Of one group's kernel: (O / groups, I / groups, *k)."""
        return (self.outputs // self.groups, self.inputs // self.groups, *self.kernel)

    def parameters(self, *, bias: bool = False) -> int:
        """Numbers of the dense layer."""
        return prod(self.kernel_shape) + bias * self.outputs

    def output_shape(self, spatial: Sizes, axes: Sequence[int] | None = None) -> Sizes:
        """The spatial sizes after the convolution, or after its part along some axes.

        Raises InvalidShape for another number of axes, and where nothing is left of an axis.
        """
        if len(spatial) != len(self.kernel):
            raise InvalidShape(f"a kernel {self.kernel} takes {len(self.kernel)} axes, not {spatial}")
        done = self.axes if axes is None else axes
        sizes = tuple(self._along(axis, size) if axis in done else size for axis, size in enumerate(spatial))
        if any(size < 1 for size in sizes):
            raise InvalidShape(
                f"nothing is left of {spatial} voxels after a kernel {self.kernel} with dilation "
                f"{self.dilation} and padding {self.padding}: give larger inputs"
            )
        return sizes

    def macs(self, spatial: Sizes) -> int:
        """Multiplications and additions of the dense layer for one sample of these spatial sizes."""
        return self.places(spatial, self.axes) * prod(self.kernel_shape)

    def places(self, spatial: Sizes, axes: Sequence[int]) -> int:
        """How often the kernel's part along these axes is applied: once for each voxel that it makes.

        A transposed one: for each that it reads.
        """
        after = self.output_shape(spatial, axes)
        return prod(spatial if self.transposed else after)

    def activation(self, spatial: Sizes) -> int:
        """Numbers that the dense layer reads and writes for one sample."""
        return self.inputs * prod(spatial) + self.outputs * prod(self.output_shape(spatial))

    def convolved(
        self,
        x: Float[Tensor, "n c *spatial"],
        kernel: Float[Tensor, "o i *k"],
        bias: Float[Tensor, " o"] | None = None,
        axes: Sequence[int] | None = None,
    ) -> Float[Tensor, "n o *spatial2"]:
        """The convolution of `x` with a kernel, or with its part along some axes.

        The kernel is (o, i, *k) with `groups` * i channels of `x`; along the axes left out its size is 1.
        """
        if not self.kernel:
            return functional.linear(x, kernel, bias)
        pads, settings = self._settings(self.axes if axes is None else axes)
        if self.transposed:
            return CONVOLVE_TRANSPOSED[len(self.kernel)](x, exchanged(kernel, self.groups), bias, *settings)
        if pads:
            x = functional.pad(
                x, pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode
            )
        return CONVOLVE[len(self.kernel)](x, kernel, bias, *settings)

    def views(self, x: Float[Tensor, "n c *spatial"], axis: int) -> list[Float[Tensor, "n c *spatial2"]]:
        """Of a forward convolution: what each voxel of the kernel sees of `x` along one axis, padding too."""
        after = self.output_shape(tuple(x.shape[2:]), (axis,))[axis]
        pads = [0] * (2 * len(self.kernel))
        at = 2 * (len(self.kernel) - 1 - axis)
        pads[at : at + 2] = self.padding[axis]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(x, pads, mode=mode) if any(pads) else x
        reach = (after - 1) * self.stride[axis] + 1
        starts = (voxel * self.dilation[axis] for voxel in range(self.kernel[axis]))
        steps = [slice(None)] * (2 + axis)
        return [padded[(*steps, slice(start, start + reach, self.stride[axis]))] for start in starts]

    def _settings(self, done: Sequence[int]) -> tuple[list[int], tuple[Any, ...]]:
        """Along some axes: what `pad` adds, the last axis first, and PyTorch's arguments after the bias."""
        stride = tuple(self.stride[axis] if axis in done else 1 for axis in self.axes)
        dilation = tuple(self.dilation[axis] if axis in done else 1 for axis in self.axes)
        pads = [self.padding[axis] if axis in done else (0, 0) for axis in self.axes]
        inside = tuple(before for before, _ in pads)
        if self.transposed:
            extra = tuple(self.output_padding[axis] if axis in done else 0 for axis in self.axes)
            return [], (stride, inside, extra, self.groups, dilation)
        even = self.padding_mode == "zeros" and all(before == after for before, after in pads)
        if even or not any(map(any, pads)):
            return [], (stride, inside, dilation, self.groups)
        outside = [size for pair in reversed(pads) for size in pair]
        return outside, (stride, tuple(0 for _ in pads), dilation, self.groups)

    def _along(self, axis: int, size: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        padding = sum(self.padding[axis])
        if self.transposed:
            return (size - 1) * self.stride[axis] - padding + reach + self.output_padding[axis] + 1
        return (size + padding - reach - 1) // self.stride[axis] + 1


def exchanged(kernel: Float[Tensor, "o i *k"], groups: int) -> Float[Tensor, "i2 o2 *k"]:
    """Inputs and outputs exchanged in each group: PyTorch's layout of a transposed kernel, and back."""
    blocks = kernel.reshape(groups, len(kernel) // groups, *kernel.shape[1:])
    return blocks.transpose(1, 2).flatten(0, 1)


def geometry_of(layer: nn.Module) -> Geometry:
    """Of an nn.Linear, an nn.Conv1d, 2d, 3d, or a transposed one.

    Raises InvalidShape for other layers, and those that do not know their inputs' channels yet.
    """
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in layer.parameters()):
        raise InvalidShape(f"a {type(layer).__name__} has no kernel before its first input: give it one")
    if isinstance(layer, nn.Linear):
        return Geometry(layer.in_features, layer.out_features)
    if not isinstance(layer, (*FORWARD.values(), *TRANSPOSED.values())):
        known = ", ".join(sorted(kind.__name__ for kind in (*FORWARD.values(), *TRANSPOSED.values())))
        raise InvalidShape(f"a {type(layer).__name__} is no convolution: take one of Linear, {known}")
    found: Any = layer
    return Geometry(
        inputs=found.in_channels,
        outputs=found.out_channels,
        kernel=tuple(found.kernel_size),
        stride=tuple(found.stride),
        padding=_padding_of(found),
        dilation=tuple(found.dilation),
        groups=found.groups,
        transposed=found.transposed,
        output_padding=tuple(found.output_padding),
        padding_mode=found.padding_mode,
    )


def kernel_of(layer: nn.Module, name: str = "the kernel") -> Float[Tensor, "o i *k"]:
    """A layer's kernel as an array (O, I / groups, *k), transposed layers' too; without history.

    Raises InvalidShape as `geometry_of`, and NonFinite, naming the kernel by `name`.
    """
    geometry = geometry_of(layer)
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.detach()
    refuse_non_finite(weight, name)
    return exchanged(weight, geometry.groups) if geometry.transposed else weight


def plain_layer(
    geometry: Geometry, kernel: Float[Tensor, "o i *k"], bias: Float[Tensor, " o"] | None
) -> nn.Module:
    """The layer of PyTorch with this kernel, in its dtype and on its device. Both are copied."""
    make: Any = nn.Linear
    settings: dict[str, Any] = {}
    if geometry.kernel:
        make = (TRANSPOSED if geometry.transposed else FORWARD)[len(geometry.kernel)]
        settings = {
            "kernel_size": geometry.kernel,
            "stride": geometry.stride,
            "padding": _plain_padding(geometry),
            "dilation": geometry.dilation,
            "groups": geometry.groups,
            "padding_mode": geometry.padding_mode,
        }
    if geometry.transposed:
        settings["output_padding"] = geometry.output_padding
    layer: nn.Module = make(
        geometry.inputs,
        geometry.outputs,
        bias=bias is not None,
        device="meta",
        dtype=kernel.dtype,
        **settings,
    ).to_empty(device=kernel.device)
    values = exchanged(kernel, geometry.groups) if geometry.transposed else kernel
    with torch.no_grad():
        _copied(layer.weight, values)
        if bias is not None:
            _copied(layer.bias, bias)
    return layer


def _copied(parameter: Any, values: Tensor) -> None:
    parameter.copy_(values)


def _padding_of(layer: Any) -> tuple[tuple[int, int], ...]:
    """What is put before and after each axis; of an odd number 'same' puts the larger part after."""
    if layer.padding == "valid":
        return tuple((0, 0) for _ in layer.kernel_size)
    if layer.padding == "same":
        reaches = [dilation * (k - 1) for dilation, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple((reach // 2, reach - reach // 2) for reach in reaches)
    return tuple((padding, padding) for padding in layer.padding)


def _plain_padding(geometry: Geometry) -> Sizes | str:
    if any(before != after for before, after in geometry.padding):
        return "same"
    return tuple(before for before, _ in geometry.padding)
