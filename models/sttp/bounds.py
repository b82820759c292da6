"""Certified bounds of what layers and networks do to differences: |f(x) - f(y)| <= bound |x - y|.

At each frequency a convolution is its matrix (outputs by inputs and kernel) times phases of norm sqrt(K), so
its norm is at most sqrt(K) sigma_max of the matrix: 3 times for 3x3, attained by constant kernels. The same
holds for the matrix of outputs and kernel by inputs. Stride and zeros around only take rows or columns away.
These are bounds and no estimates: a trained network is usually far below them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, prod, sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.errors import InvalidConfig, InvalidShape
from models.sttp.lowrank import FACTORED
from models.sttp.weights import Convolution, weight_shape

ROUNDING = 1 + 1e-12
"""What a computed norm, in float64, is multiplied by."""

GELU_SLOPE, SILU_SLOPE = 1.13, 1.1
"""Above their largest derivatives, 1.1290 and 1.0999."""

Bound = Callable[[nn.Module], float]
Rule = Callable[[nn.Module, Bound], float]
"""(module, the bound of any module) -> the module's bound: for modules of one's own."""


def operator_bound(module: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None) -> float:
    """The bound of a layer or a network of layers in sequence.

    Other modules need a rule for their class, such as
    `{Block: lambda block, of: residual(of(block.second) * of(block.first), of(block.shortcut))}`. Raises
    InvalidShape, naming the class, for a module without one, and InvalidConfig for a layer that has no bound
    as it is set: a normalisation or a dropout in training.
    """
    known = {**RULES, **(rules or {})}
    kind = _class(module)
    if kind not in known:
        raise InvalidShape(f"no bound is known of {kind.__name__}: give a rule for it")
    return known[kind](module, partial(operator_bound, rules=rules))


def residual(branch: float, shortcut: float = 1.0) -> float:
    """The bound of a sum of two paths: 1 + K with an identity beside a branch of bound K."""
    return branch + shortcut


@torch.no_grad()
def layer_bound(layer: nn.Module) -> float:
    """sigma_max of a linear layer; of a convolution sqrt(K) times the smaller one of its two unfoldings."""
    shape = weight_shape(layer)
    matrices = shape.matrices(cast(Tensor, layer.weight).detach()).to(torch.float64)
    size = prod(shape.kernel)
    norm = _norm(matrices)
    if size > 1:
        other = matrices.reshape(shape.groups, shape.outputs, shape.inputs, size).transpose(2, 3)
        norm = min(norm, _norm(other.reshape(shape.groups, -1, shape.inputs)))
    around = _padding_bound(layer) if isinstance(layer, Convolution) else 1.0
    return norm * sqrt(size) * around * ROUNDING


def _norm(matrices: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrices, 2).max())


def _padding_bound(layer: Convolution) -> float:
    """The root of how often one value appears in a padded input."""
    if layer.padding_mode == "zeros":
        return 1.0
    sides = layer._reversed_padding_repeated_twice
    pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    reach = [step * (n - 1) for step, n in zip(layer.dilation, layer.kernel_size, strict=True)]
    times = (_repeats(layer.padding_mode, *pair, far) for pair, far in zip(pairs, reach, strict=True))
    return sqrt(prod(times))


def _repeats(mode: str, before: int, after: int, reach: int) -> int:
    """How often a value may stand along one axis; once in a circular one that gives no more than it takes."""
    if mode == "replicate":
        return 1 + before + after
    if mode == "circular" and before + after <= reach:
        return 1
    return 1 + (before > 0) + (after > 0)


def _weighted(layer: nn.Module, _: Bound) -> float:
    return layer_bound(layer)


def _sequence(module: nn.Module, of: Bound) -> float:
    assert isinstance(module, nn.Sequential)
    return prod((of(child) for child in module), start=1.0)


def _constant(value: float) -> Rule:
    return lambda _, __: value


@torch.no_grad()
def _normalisation(layer: nn.Module, _: Bound) -> float:
    """max |gamma| / sqrt(var + eps)."""
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    if layer.training or layer.running_var is None:
        raise InvalidConfig("training", True, "False: in training a normalisation depends on the other items")
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    return float((scale if layer.weight is None else scale * layer.weight.abs()).max()) * ROUNDING


def _dropout(layer: nn.Module, _: Bound) -> float:
    if layer.training:
        raise InvalidConfig("training", True, "False: in training a dropout is another function each time")
    return 1.0


def _leaky(layer: nn.Module, _: Bound) -> float:
    assert isinstance(layer, nn.LeakyReLU)
    return max(1.0, abs(layer.negative_slope))


def _exponential(layer: nn.Module, _: Bound) -> float:
    assert isinstance(layer, nn.ELU)
    return max(1.0, abs(layer.alpha))


def _maximum(layer: nn.Module, _: Bound) -> float:
    """The root of how many windows a value may be the maximum of."""
    assert isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
    axes = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}[type(layer)]
    size, stride = (_each(value, axes) for value in (layer.kernel_size, layer.stride))
    return sqrt(prod(ceil(n / step) for n, step in zip(size, stride, strict=True)))


def _mean(layer: nn.Module, _: Bound) -> float:
    """1: a constant kernel of sum 1. Windows cut at the border, whose values weigh more, are refused."""
    assert isinstance(layer, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d)
    padded = any(_each(layer.padding, 1))
    if layer.ceil_mode or (padded and not layer.count_include_pad):
        raise InvalidConfig("ceil_mode", layer.ceil_mode, "False, with count_include_pad, to have a bound")
    if getattr(layer, "divisor_override", None):
        raise InvalidConfig("divisor_override", layer.divisor_override, "None to have a bound")
    return 1.0


def _mean_of_all(layer: nn.Module, _: Bound) -> float:
    size = getattr(layer, "output_size", None)
    if any(n != 1 for n in (size if isinstance(size, tuple) else (size,))):
        raise InvalidConfig("output_size", size, "1 to have a bound")
    return 1.0


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * axes


def _class(module: nn.Module) -> type[nn.Module]:
    """The class that computes, without the parametrization of its weight."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


RULES: dict[type[nn.Module], Rule] = {
    nn.Sequential: _sequence,
    **dict.fromkeys(FACTORED, _weighted),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _normalisation),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    **dict.fromkeys((nn.Identity, nn.Flatten, nn.Unflatten), _constant(1.0)),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softsign), _constant(1.0)),
    nn.Sigmoid: _constant(0.25),
    nn.GELU: _constant(GELU_SLOPE),
    nn.SiLU: _constant(SILU_SLOPE),
    nn.LeakyReLU: _leaky,
    nn.ELU: _exponential,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _maximum),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _mean),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _mean_of_all),
}
