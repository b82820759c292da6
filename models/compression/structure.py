"""Compressed models taken apart: their tensors, and what they are made of, a structure without numbers.

A structure is plain JSON with two entries: `layers`, for each factorised layer its method, modes, ranks,
geometry and execution, and `spectral`, what `models.sttp.packing` says of spectral weights, whose tensors are
degrees of freedom and nothing else. The two fill a freshly made dense model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.compression.applying import exchange_
from models.compression.forms import CANONICAL, LOW_RANK, RING, Form, Shape
from models.convolutions import Geometry, geometry_of
from models.errors import InvalidShape, ModelError
from models.rsdtr.canonical import CanonicalShape
from models.rsdtr.canonical_layer import CanonicalConv
from models.rsdtr.layers import FactorisedLayer, LowRankConv, LowRankLinear, RingConv
from models.rsdtr.low_rank import LowRankShape
from models.rsdtr.ring import RingShape, TensorRing
from models.sttp.packing import packed, unpack_
from models.sttp.parametrizations import spectral_of


def is_plain(model: nn.Module) -> bool:
    """Whether no layer of a model is factorised or has a spectral weight."""
    return not any(isinstance(m, FactorisedLayer) or spectral_of(m) is not None for m in model.modules())


def structure_of(model: nn.Module) -> dict[str, Any]:
    """The structure; empty of a plain model. Raises as `taken_apart`."""
    return {} if is_plain(model) else taken_apart(model)[1]


def taken_apart(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, structure) of a compressed model, or of any.

    Raises InvalidShape for a spectral layer that the model has under two names.
    """
    _refuse_spectral_twice(model)
    tensors, spectral = packed(model)
    factorised = {
        name: _told(layer) for name, layer in model.named_modules() if isinstance(layer, FactorisedLayer)
    }
    return tensors, {"layers": factorised, "spectral": dict(spectral)}


def fill_(model: nn.Module, tensors: Mapping[str, Tensor], structure: Mapping[str, Any]) -> None:
    """Fill a freshly made model, dense or with the same spectral weights, with what `taken_apart` gave.

    Raises InvalidShape, naming the layer or the tensor, for another model's, and NonFinite for values that
    are not finite. The model is then as it was.
    """
    try:
        layers = {name: dict(told) for name, told in structure["layers"].items()}
        spectral = dict(structure["spectral"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidShape("the structure says nothing of layers or of spectral weights") from error
    numbers = sum(tensor.numel() for tensor in tensors.values())
    made = {name: _empty(model, name, told, numbers) for name, told in layers.items()}
    before = {name: model.get_submodule(name) for name in made}
    exchange_(model, made)
    try:
        unpack_(model, tensors, spectral)
    except BaseException:
        exchange_(model, before)
        raise
    for layer in model.modules():
        if spectral_of(layer) is not None:
            layer.train(layer.training)


def _refuse_spectral_twice(model: nn.Module) -> None:
    names: dict[int, str] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if spectral_of(layer) is not None and names.setdefault(id(layer), name) != name:
            raise InvalidShape(
                f"{names[id(layer)]} and {name} are one layer with a spectral weight, which files do not "
                "hold: leave it dense by a filter, or fold it"
            )


def _told(layer: FactorisedLayer) -> dict[str, Any]:
    """How a layer is made, without its numbers."""
    shape = cast(Shape, layer.shape)
    methods = {RingShape: RING, LowRankShape: LOW_RANK, CanonicalShape: CANONICAL}
    return {
        "method": methods[type(shape)],
        "modes": [list(mode) for mode in shape.modes] if isinstance(shape, RingShape) else [],
        "ranks": list(shape.ranks) if isinstance(shape, RingShape) else [shape.rank],
        "late": list(shape.late) if isinstance(shape, LowRankShape) else [],
        "geometry": json.loads(json.dumps(asdict(layer.geometry))),
        "execution": layer.plan,
    }


def _empty(model: nn.Module, name: str, told: Mapping[str, Any], numbers: int) -> FactorisedLayer:
    """The layer that a structure says, with zeros for factors, `numbers` at most.

    Raises InvalidShape where it is not the model's.
    """
    try:
        layer = model.get_submodule(name)
        geometry = geometry_of(layer)
    except (AttributeError, InvalidShape) as error:
        raise InvalidShape(f"the model has no dense layer {name}, as the saved one had") from error
    if json.loads(json.dumps(asdict(geometry))) != told.get("geometry"):
        raise InvalidShape(f"{name} of the model is {geometry}, the saved one's {told.get('geometry')}")
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    try:
        modes = tuple(tuple(mode) for mode in told["modes"])
        form = Form(told["method"], tuple(told["ranks"]), modes, tuple(told["late"]))
        shape = form.shape(geometry.block_shape)
        if geometry.groups * shape.storage > numbers:
            raise InvalidShape("it has more numbers than were saved")
        made = _zeros(geometry, shape, bias)
        made.plan = told["execution"]
    except (ModelError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InvalidShape(f"the structure does not say what {name} is made of: {error}") from error
    assert isinstance(layer.weight, Tensor)
    return made.to(layer.weight).train(layer.training)


def _zeros(geometry: Geometry, shape: Shape, bias: Tensor | None) -> FactorisedLayer:
    groups = geometry.groups
    if isinstance(shape, CanonicalShape):
        o, i, *k = geometry.block_shape
        a, b, c = (torch.zeros(groups, size, shape.rank) for size in (o, i, prod(k)))
        return CanonicalConv(geometry, shape, (a, b, c), bias)
    if isinstance(shape, RingShape):
        bonds = zip(shape.lengths, shape.bonds, strict=True)
        cores = tuple(torch.zeros(groups, left, n, right) for n, (left, right) in bonds)
        return RingConv(geometry, TensorRing(shape, cores), bias)
    first = torch.zeros(groups * shape.in_shape[0], *shape.in_shape[1:])
    second = torch.zeros(groups * shape.out_shape[0], *shape.out_shape[1:])
    return (LowRankConv if geometry.kernel else LowRankLinear)(geometry, shape, (second, first), bias)
