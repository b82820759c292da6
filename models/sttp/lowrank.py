"""Layers computed from their factors: r filters with the kernel, then a 1x1 layer with the singular values.

Obukhov et al., arXiv:2103.04217, section 6, which the official layers do not do. Per output position this
takes r(I K + O) multiplications instead of O I K, and the weight is never made. Stride, padding of every
mode, dilation and groups go with the first layer, the bias with the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidShape
from models.sttp.parametrizations import Spectral, factors_of, originals, spectral_of
from models.sttp.weights import Convolution, Transposed, WeightShape

EXECUTIONS = ("auto", "low-rank", "dense")

_PLAIN: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def multiplications(layer: nn.Module, spectral: Spectral) -> tuple[int, int]:
    """(low-rank, dense): per output position of a convolution, input position of a transposed one, or row."""
    shape, r = spectral.shape, spectral.layout.width
    outputs = prod(layer.stride) if isinstance(layer, Transposed) else 1
    low = shape.groups * r * (shape.columns + outputs * shape.outputs)
    return low, shape.groups * shape.outputs * shape.columns


def executing_class(layer: nn.Module, spectral: Spectral, execution: str) -> type[nn.Module]:
    """The class that computes a layer, not parametrised yet, as `execution` says: a factored one, or its own.

    Raises InvalidShape for "low-rank" of a class that may compute something else with its weight.
    """
    own = type(layer)
    low, dense = multiplications(layer, spectral)
    if execution == "low-rank" and own not in FACTORED:
        raise InvalidShape(f"{own.__name__} is no layer of torch.nn: its execution must be 'dense' or 'auto'")
    fewer = execution == "low-rank" or (execution == "auto" and low < dense)
    return FACTORED.get(own, own) if fewer else own


class _Factored(nn.Module):
    """A layer that is computed from its factors while its weight has a spectral parametrization."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # noqa: A002
        """What the layer with the whole weight gives, to rounding; an output size is for transposed ones."""
        spectral = spectral_of(self)
        if spectral is None:
            return cast(Tensor, super().forward(input, *([] if output_size is None else [output_size])))
        left, right = factors_of(self)
        dtype = originals(self)[0].dtype
        filters, mixing = factor_weights(spectral.shape, left.to(dtype), right.to(dtype))
        return _mixed(self, _filtered(self, input, filters, output_size), mixing)


def factor_weights(shape: WeightShape, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the two layers; of linear layers (r, inputs) and (outputs, r)."""
    groups, _, r = left.shape
    mixing = left.reshape(groups * shape.outputs, r, *(1 for _ in shape.kernel))
    if shape.transposed:
        filters = right.reshape(groups, shape.inputs, *shape.kernel, r).movedim(-1, 2).flatten(0, 1)
    else:
        filters = right.mT.reshape(groups * r, shape.inputs, *shape.kernel)
    return filters, mixing


def _filtered(layer: nn.Module, x: Tensor, filters: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """The first of the two layers."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, filters)
    if isinstance(layer, Transposed):
        axes = len(layer.kernel_size)
        added = _output_padding(layer, x, output_size)
        compute = _TRANSPOSED[axes]
        return compute(x, filters, None, layer.stride, layer.padding, added, layer.groups, layer.dilation)
    assert isinstance(layer, Convolution)
    return cast(Tensor, layer._conv_forward(x, filters, None))


def _mixed(layer: nn.Module, filtered: Tensor, mixing: Tensor) -> Tensor:
    """The second."""
    if isinstance(layer, nn.Linear):
        return functional.linear(filtered, mixing, layer.bias)
    assert isinstance(layer, Convolution | Transposed)
    return _PLAIN[len(layer.kernel_size)](filtered, mixing, layer.bias, groups=layer.groups)


def _output_padding(layer: Transposed, x: Tensor, output_size: Sequence[int] | None) -> Any:
    return layer._output_padding(
        x,
        None if output_size is None else list(output_size),
        list(layer.stride),
        list(cast("tuple[int, ...]", layer.padding)),
        list(layer.kernel_size),
        len(layer.kernel_size),
        list(layer.dilation),
    )


class FactoredLinear(_Factored, nn.Linear):
    """A linear layer that is computed from its factors."""


class FactoredConv1d(_Factored, nn.Conv1d):
    """A convolution that is computed from its factors."""


class FactoredConv2d(_Factored, nn.Conv2d):
    """A convolution that is computed from its factors."""


class FactoredConv3d(_Factored, nn.Conv3d):
    """A convolution that is computed from its factors."""


class FactoredConvTranspose1d(_Factored, nn.ConvTranspose1d):
    """A transposed convolution that is computed from its factors."""


class FactoredConvTranspose2d(_Factored, nn.ConvTranspose2d):
    """A transposed convolution that is computed from its factors."""


class FactoredConvTranspose3d(_Factored, nn.ConvTranspose3d):
    """A transposed convolution that is computed from its factors."""


FACTORED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FactoredLinear,
    nn.Conv1d: FactoredConv1d,
    nn.Conv2d: FactoredConv2d,
    nn.Conv3d: FactoredConv3d,
    nn.ConvTranspose1d: FactoredConvTranspose1d,
    nn.ConvTranspose2d: FactoredConvTranspose2d,
    nn.ConvTranspose3d: FactoredConvTranspose3d,
}
FACTORED |= {factored: factored for factored in FACTORED.values()}
