"""Spectral models as safetensors: degrees of freedom, and what has no spectral weight, and nothing else.

A spectral weight is kept as `NAME.outputs`, `NAME.inputs`, `NAME.singular_values` (or `NAME.signs`, one byte
each, where they are constant) and `NAME.bound`; how it is laid out stands in the metadata. In half precision
the frames are as orthonormal and the bound as exact: both are computed from whatever entries there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.errors import InvalidShape, refuse_non_finite
from models.sttp.apply import all_or_none, attach_
from models.sttp.lowrank import FACTORED
from models.sttp.parametrizations import Spectral, originals, spectral_of
from models.sttp.weights import Layer, WeightShape, weight_shape

SCHEMA = 1
"""Of what `packed` gives."""

KEY = "tomotrain.sttp"
"""Of the metadata's one entry."""

_INNER = "parametrizations.weight."
_NAMES = {
    "original0": "weight.outputs",
    "original1": "weight.inputs",
    "original2": "weight.singular_values",
    "0.bound": "weight.bound",
    "0.signs": "weight.signs",
}
_SETTINGS = {
    **dict.fromkeys(("method", "spectrum"), str),
    **dict.fromkeys(("rank", "groups"), int),
    **dict.fromkeys(("flatten_kernel", "held", "transposed", "factored"), bool),
    "shape": list,
}
_LEARNED = ("weight.outputs", "weight.inputs", "weight.singular_values")


def packed(model: nn.Module, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a model, on the CPU; `dtype` is that of degrees of freedom, such as bfloat16."""
    layers = _spectral_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        kept = value.detach().to("cpu", copy=True).contiguous()
        layer, inner = _split(name)
        if layer not in layers:
            tensors[name] = kept
            continue
        known = _NAMES[inner]
        if known in _LEARNED:
            kept = kept.to(dtype or kept.dtype)
        tensors[_joined(layer, known)] = kept.to(torch.int8) if known.endswith("signs") else kept
    told = {name: _told(model.get_submodule(name), spectral) for name, spectral in layers.items()}
    return tensors, {KEY: json.dumps({"schema": SCHEMA, "layers": told}, sort_keys=True)}


def unpack_(model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Fill a model of the same layers, plain or with the same spectral weights, with what `packed` gave.

    Raises InvalidShape, naming the layer or the tensor, for what does not fit, and NonFinite for values that
    are not finite; the model is then as it was.
    """
    told = _layers_of(metadata)
    made = {name: _made(model, name, layer) for name, layer in told.items()}
    state = _state(tensors, made)
    _refuse_misfit(model, state, made)
    _refuse_values(model, state, made)
    layers = {name: model.get_submodule(name) for name in made}
    with all_or_none(list(layers.values())):
        for name, layer in layers.items():
            if spectral_of(layer) is None:
                factored = FACTORED.get(type(layer)) if told[name]["factored"] else None
                with torch.random.fork_rng(devices=[]):
                    attach_(layer, made[name], factored or type(layer))
        model.load_state_dict(state, strict=True)


def to_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> bytes:
    """A safetensors file of `packed`; the same model gives the same bytes."""
    tensors, metadata = packed(model, dtype)
    return save(tensors, metadata)


def from_bytes_(model: nn.Module, content: bytes) -> None:
    """`unpack_` of a file's content. Raises InvalidShape for what is no file of a spectral model."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise InvalidShape(f"this is no safetensors file: {error}") from error
    unpack_(model, tensors, metadata)


def _spectral_layers(model: nn.Module) -> dict[str, Spectral]:
    found = ((name, spectral_of(layer)) for name, layer in model.named_modules())
    return {name: spectral for name, spectral in found if spectral is not None}


def _split(name: str) -> tuple[str | None, str]:
    """(layer, name within its parametrization) of a name of the state dict; (None, name) of another."""
    if _INNER not in name:
        return None, name
    before, inner = name.split(_INNER)
    return before.removesuffix("."), inner


def _joined(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _told(layer: nn.Module, spectral: Spectral) -> dict[str, Any]:
    shape = spectral.shape
    return {
        "method": spectral.method,
        "rank": spectral.rank,
        "spectrum": spectral.spectrum,
        "flatten_kernel": spectral.flatten_kernel,
        "held": spectral.held,
        "shape": list(shape.shape),
        "groups": shape.groups,
        "transposed": shape.transposed,
        "factored": any(isinstance(layer, factored) for factored in set(FACTORED.values())),
    }


def _layers_of(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(metadata[KEY])
        schema, layers = told["schema"], dict(told["layers"])
        complete = all(set(layer) == set(_SETTINGS) for layer in layers.values())
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidShape(
            f"the metadata of the tensors has no {KEY}: they are of no spectral model"
        ) from error
    if schema != SCHEMA:
        raise InvalidShape(f"the tensors are of schema {schema}, this program reads {SCHEMA}: pack them anew")
    if not complete:
        raise InvalidShape(f"the metadata of a layer has not {', '.join(sorted(_SETTINGS))}: it is damaged")
    for name, layer in layers.items():
        _refuse_damaged(name, layer)
    return layers


def _refuse_damaged(name: str, told: Mapping[str, Any]) -> None:
    wrong = [setting for setting, kind in _SETTINGS.items() if type(told[setting]) is not kind]
    wrong += ["shape"] if not wrong and any(type(size) is not int for size in told["shape"]) else []
    for setting in wrong:
        raise InvalidShape(f"{setting} of {name} is {told[setting]!r} in the metadata: it is damaged")


def _made(model: nn.Module, name: str, told: dict[str, Any]) -> Spectral:
    """The layer's spectral parametrization, or one for it. Raises InvalidShape where it is another's."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise InvalidShape(f"the model has no layer {name}") from error
    shape = WeightShape(tuple(told["shape"]), told["groups"], told["transposed"])
    own = spectral_of(layer)
    if own is not None:
        ours = _told(layer, own)
        for setting, value in told.items():
            if setting != "factored" and ours[setting] != value:
                raise InvalidShape(f"{setting} of {name} is {ours[setting]}, not {value} as in the tensors")
        return own
    if not isinstance(layer, Layer) or weight_shape(layer) != shape:
        raise InvalidShape(f"{name} of the model is {layer}, not a layer with a weight of {shape}")
    return Spectral(
        shape,
        told["method"],
        told["rank"],
        spectrum=told["spectrum"],
        bound=1.0 if told["held"] else None,
        flatten_kernel=told["flatten_kernel"],
        start="identity",
    )


def _state(tensors: Mapping[str, Tensor], made: Mapping[str, Spectral]) -> dict[str, Tensor]:
    """The tensors by their names in the state dict."""
    inner = {_joined(layer, known): (layer, name) for layer in made for name, known in _NAMES.items()}
    state = {}
    for name, value in tensors.items():
        layer, key = inner.get(name, ("", ""))
        state[_joined(layer, _INNER + key) if key else name] = value
    return state


def _refuse_misfit(model: nn.Module, state: Mapping[str, Tensor], made: Mapping[str, Spectral]) -> None:
    """Raise InvalidShape for tensors that are not those of the model with these spectral weights."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for layer, spectral in made.items():
        expected.pop(_joined(layer, "weight"), None)
        expected |= {_joined(layer, _INNER + key): size for key, size in _sizes(spectral).items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InvalidShape(
                f"{name} has shape {found.get(name, 'none')} in the tensors, {expected.get(name, 'none')} in "
                "the model: they are of different models"
            )


def _refuse_values(model: nn.Module, state: Mapping[str, Tensor], made: Mapping[str, Spectral]) -> None:
    """Raise InvalidShape for values of another kind than the model's, NonFinite as the model would hold them.

    Signs are 1 or -1, a bound is not negative, and of the singular values one is not 0.
    """
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    for layer, spectral in made.items():
        own = model.get_submodule(layer)
        dtype = originals(own)[0].dtype if spectral_of(own) else cast(Tensor, own.weight).dtype
        kinds |= {_joined(layer, _INNER + key): dtype for key in _sizes(spectral)}
    for name, value in state.items():
        _refuse_value(name, value, kinds[name])


def _refuse_value(name: str, value: Tensor, kind: torch.dtype) -> None:
    inner = name.rpartition(_INNER)[2] if _INNER in name else ""
    told = _joined(_split(name)[0] or "", _NAMES[inner]) if inner else name
    if inner == "0.signs":
        if value.dtype != torch.int8 or not bool((value.abs() == 1).all()):
            raise InvalidShape(f"{told} must be 1 or -1, of {torch.int8}")
        return
    if value.is_floating_point() != kind.is_floating_point or (
        not kind.is_floating_point and value.dtype != kind
    ):
        raise InvalidShape(f"{told} holds {value.dtype} in the tensors, {kind} in the model")
    if kind.is_floating_point:
        refuse_non_finite(value.to(kind), told)
    if inner == "0.bound" and value < 0:
        raise InvalidShape(f"{told} is {float(value)}: the largest singular value is not negative")
    if inner == "original2" and not bool(value.to(kind).any()):
        raise InvalidShape(f"{told} are all 0: one must be the largest")


def _sizes(spectral: Spectral) -> dict[str, tuple[int, ...]]:
    groups, layout = spectral.shape.groups, spectral.layout
    values = {"0.signs" if layout.constant else "original2": (groups, layout.width)}
    return {
        "original0": (groups, layout.output_chain.parameters),
        "original1": (groups, layout.input_chain.parameters),
        "0.bound": (),
        **values,
    }
