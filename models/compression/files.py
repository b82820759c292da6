"""Compressed models as safetensors: the tensors of the state dict, and how layers are made of them.

The metadata has one entry, a JSON document: the version; for each layer its method, modes, ranks, geometry
and execution, with eps and the error of the plan where it is given; the digest of the dense model's weights;
and a digest of the file's own tensors and document. Spectral weights are stored as `models.sttp.packing`
does. A file is read into a freshly made dense model, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.compression.applying import exchange_
from models.compression.forms import LOW_RANK, RING, Form
from models.compression.plans import CompressionPlan, digest_of_tensors
from models.convolutions import Geometry, geometry_of
from models.errors import InvalidShape, ModelError
from models.rsdtr.layers import FactorisedLayer, LowRankConv, LowRankLinear, RingConv
from models.rsdtr.low_rank import LowRankShape
from models.rsdtr.ring import RingShape, TensorRing
from models.sttp.packing import packed, unpack_
from models.sttp.parametrizations import spectral_of

VERSION = 1
"""Of the document."""

KEY = "tomotrain.compression"
"""Of the metadata's one entry."""

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def to_bytes(model: nn.Module, plan: CompressionPlan | None = None) -> bytes:
    """A safetensors file of a compressed model, or of any; the same model gives the same bytes.

    With its `plan`, the file says which weights it came from and with what error. Raises InvalidShape for a
    spectral layer that the model has under two names.
    """
    _refuse_spectral_twice(model)
    tensors, spectral = packed(model)
    planned = {} if plan is None else {layer.name: layer for layer in plan.layers}
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, FactorisedLayer):
            known = planned.get(name)
            form = None if known is None else known.form
            layers[name] = {
                **_told(layer),
                "eps": None if form is None else form.eps,
                "error": None if known is None or form is None else known.error,
            }
    document = {
        "version": VERSION,
        "layers": layers,
        "spectral": dict(spectral),
        "spectral_errors": {
            name: layer.error for name, layer in planned.items() if layer.form and name not in layers
        },
        "source": None if plan is None else plan.digest,
        "config": None if plan is None else plan.config,
    }
    document["digest"] = _digest(tensors, document)
    return save(tensors, {KEY: json.dumps(document, sort_keys=True)})


def from_bytes_(model: nn.Module, content: bytes) -> dict[str, Any]:
    """Fill a freshly made dense model with what `to_bytes` gave, in place; returned is the file's document.

    Raises InvalidShape for what is no such file (a pickle, another version, a byte that was altered), and,
    naming the layer or the tensor, for another model's; NonFinite for values that are not finite. The model
    is then as it was.
    """
    tensors, document = _read(content)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    made = {name: _empty(model, name, told, numbers) for name, told in document["layers"].items()}
    before = {name: model.get_submodule(name) for name in made}
    exchange_(model, made)
    try:
        unpack_(model, tensors, document["spectral"])
    except BaseException:
        exchange_(model, before)
        raise
    for layer in model.modules():
        if spectral_of(layer) is not None:
            layer.train(layer.training)
    return document


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
    shape = layer.shape
    assert isinstance(shape, RingShape | LowRankShape)
    ring = isinstance(shape, RingShape)
    return {
        "method": RING if ring else LOW_RANK,
        "modes": [list(mode) for mode in shape.modes] if isinstance(shape, RingShape) else [],
        "ranks": list(shape.ranks) if isinstance(shape, RingShape) else [shape.rank],
        "late": list(shape.late) if isinstance(shape, LowRankShape) else [],
        "geometry": json.loads(json.dumps(asdict(layer.geometry))),
        "execution": layer.plan,
    }


def _read(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if content.startswith(_PICKLES):
        raise InvalidShape("this is a pickle or an archive, which is never read: save the model by to_bytes")
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidShape(f"this is no safetensors file: {error}") from error
    try:
        document = dict(json.loads(header["__metadata__"][KEY]))
        version, stated = document["version"], document.pop("digest")
        document["layers"], document["spectral"] = dict(document["layers"]), dict(document["spectral"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidShape(f"the file's metadata has no {KEY}: it is of no compressed model") from error
    if version != VERSION:
        raise InvalidShape(f"the file is of version {version}, this program reads {VERSION}: save it anew")
    if _digest(tensors, document) != stated:
        raise InvalidShape("the file was altered: its tensors and metadata are not those it was saved with")
    return tensors, document


def _digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    stated = json.dumps(document, sort_keys=True)
    return hashlib.sha256(f"{digest_of_tensors(tensors.items())} {stated}".encode()).hexdigest()


def _empty(model: nn.Module, name: str, told: Mapping[str, Any], numbers: int) -> FactorisedLayer:
    """The layer that the file says, with zeros for factors, `numbers` at most.

    Raises InvalidShape where it is not the model's.
    """
    try:
        layer = model.get_submodule(name)
        geometry = geometry_of(layer)
    except (AttributeError, InvalidShape) as error:
        raise InvalidShape(f"the model has no dense layer {name}, as the file has") from error
    if json.loads(json.dumps(asdict(geometry))) != told.get("geometry"):
        raise InvalidShape(f"{name} of the model is {geometry}, the file's is {told.get('geometry')}")
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    try:
        modes = tuple(tuple(mode) for mode in told["modes"])
        form = Form(told["method"], tuple(told["ranks"]), modes, tuple(told["late"]))
        shape = form.shape(geometry.block_shape)
        if geometry.groups * shape.storage > numbers:
            raise InvalidShape("it has more numbers than the file")
        made = _zeros(geometry, shape, bias)
        made.plan = told["execution"]
    except (ModelError, KeyError, TypeError, ValueError) as error:
        raise InvalidShape(f"the file does not say what {name} is made of: {error}") from error
    assert isinstance(layer.weight, Tensor)
    return made.to(layer.weight).train(layer.training)


def _zeros(geometry: Geometry, shape: RingShape | LowRankShape, bias: Tensor | None) -> FactorisedLayer:
    groups = geometry.groups
    if isinstance(shape, RingShape):
        bonds = zip(shape.lengths, shape.bonds, strict=True)
        cores = tuple(torch.zeros(groups, left, n, right) for n, (left, right) in bonds)
        return RingConv(geometry, TensorRing(shape, cores), bias)
    first = torch.zeros(groups * shape.in_shape[0], *shape.in_shape[1:])
    second = torch.zeros(groups * shape.out_shape[0], *shape.out_shape[1:])
    return (LowRankConv if geometry.kernel else LowRankLinear)(geometry, shape, (second, first), bias)
