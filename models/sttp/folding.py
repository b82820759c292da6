"""Spectral layers as plain ones: one with the whole weight, or two with the factors. ONNX takes these."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from models.errors import InvalidShape
from models.sttp.lowrank import FACTORED, factor_weights
from models.sttp.parametrizations import factors_of, spectral_of
from models.sttp.weights import Convolution, Transposed

PLAIN = {factored: plain for plain, factored in FACTORED.items() if plain is not factored}
_POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@torch.no_grad()
def folded(layer: nn.Module, *, parts: int | None = None) -> nn.Module:
    """A plain layer, or a Sequential of two, that computes what a layer with a spectral weight does.

    `parts` is 1 or 2; with None, 2 where the layer is computed from its factors. Raises InvalidShape for a
    layer without a spectral weight.
    """
    if spectral_of(layer) is None:
        raise InvalidShape(f"{type(layer).__name__} has no spectral weight to be folded")
    if parts is None:
        parts = 2 if _class(layer) in PLAIN else 1
    return _one(layer) if parts == 1 else _two(layer)


def fold_(model: nn.Module) -> nn.Module:
    """Fold all spectral layers of a model in place; returned is the model, or what itself was folded to.

    A layer under several names is one afterwards too.
    """
    if spectral_of(model) is not None:
        return folded(model)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and spectral_of(child) is not None
    ]
    plain = {id(child): folded(child) for child in {id(child): child for *_, child in places}.values()}
    for parent, name, child in places:
        setattr(parent, name, plain[id(child)])
    return model


def _class(layer: nn.Module) -> type[nn.Module]:
    """The class that a layer has without its parametrizations."""
    return type(layer).__bases__[0]


def _two(layer: nn.Module) -> nn.Module:
    spectral = spectral_of(layer)
    assert spectral is not None
    left, right = factors_of(layer)
    dtype = cast(Tensor, layer.weight).dtype
    filters, mixing = factor_weights(spectral.shape, left.to(dtype), right.to(dtype))
    groups, width = spectral.shape.groups, spectral.shape.groups * spectral.layout.width
    kind = PLAIN.get(_class(layer), _class(layer))
    bias = cast("Tensor | None", layer.bias)
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(layer.in_features, width, bias=False, device="meta")
        second: nn.Module = nn.Linear(width, layer.out_features, bias=bias is not None, device="meta")
    else:
        assert isinstance(layer, Convolution | Transposed)
        first = kind(layer.in_channels, width, bias=False, device="meta", **_geometry(layer))
        pointwise = _POINTWISE[len(layer.kernel_size)]
        second = pointwise(width, layer.out_channels, 1, groups=groups, bias=bias is not None, device="meta")
    return nn.Sequential(_filled(first, filters, None), _filled(second, mixing, bias)).train(layer.training)


def _one(layer: nn.Module) -> nn.Module:
    kind = PLAIN.get(_class(layer), _class(layer))
    bias = cast("Tensor | None", layer.bias)
    if isinstance(layer, nn.Linear):
        plain = kind(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    else:
        assert isinstance(layer, Convolution | Transposed)
        geometry = _geometry(layer)
        plain = kind(layer.in_channels, layer.out_channels, bias=bias is not None, device="meta", **geometry)
    return _filled(plain, layer.weight, bias).train(layer.training)


def _geometry(layer: Convolution | Transposed) -> dict[str, Any]:
    """What a convolution is made with, besides its channels and bias."""
    names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if isinstance(layer, Transposed) else []
    return {name: getattr(layer, name) for name in names}


def _filled(plain: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer made without memory, with these parameters."""
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain
