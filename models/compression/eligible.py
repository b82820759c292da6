"""Which layers of a model may be compressed, and why the others are left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.compression.tracing import COUNTED, Calls
from models.convolutions import FORWARD, TRANSPOSED, geometry_of
from models.rsdtr.layers import FactorisedLayer

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, *FORWARD.values(), *TRANSPOSED.values())
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Filter = Callable[[nn.Module, str], bool]
"""(layer, its name in the model) -> whether it is to be compressed."""


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with weights, by first names: those with MACs, and others with arrays of their own."""
    return {
        name: module
        for name, module in model.named_modules()
        if ".parametrizations." not in f".{name}."
        and (isinstance(module, COUNTED) or any(own.ndim > 1 for own in module.parameters(recurse=False)))
    }


def reasons(model: nn.Module, calls: Mapping[str, Calls], filter_fn: Filter | None = None) -> dict[str, str]:
    """For each module of `weighted`, why it is left as it is; "" where it is to be compressed.

    Without a filter the first convolution called, the last linear layer and kernels of one voxel are left:
    what they weigh is little, and errors there cost most (RSDTR, section 4). A filter decides itself.
    """
    found = weighted(model)
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own in module.parameters(recurse=False):
            owners.setdefault(id(own), []).append(name)
    readers = _read_by_torch(model)
    stem, head = _stem_and_head(found, calls)
    told = {}
    for name, layer in found.items():
        told[name] = readers.get(id(layer), "") or _unable(name, layer, calls.get(name, ()), owners)
        if told[name]:
            continue
        if filter_fn is not None:
            told[name] = "" if filter_fn(layer, name) else "left out by the filter"
        else:
            told[name] = "stem" if name == stem else "head" if name == head else _small(layer)
    return told


def _stem_and_head(
    found: Mapping[str, nn.Module], calls: Mapping[str, Calls]
) -> tuple[str | None, str | None]:
    convolutions = [name for name in calls if not isinstance(found.get(name), nn.Linear)]
    linear = [name for name in calls if isinstance(found.get(name), nn.Linear)]
    return (convolutions[0] if convolutions else None), (linear[-1] if linear else None)


def _read_by_torch(model: nn.Module) -> dict[int, str]:
    """The parts of PyTorch's own modules, attention say: these read weights past the parts' calls."""
    return {
        id(part): f"unsupported: {type(whole).__name__} reads its weights itself"
        for whole in model.modules()
        if type(whole).__module__.startswith("torch.nn.modules") and type(whole) not in _CONTAINERS
        for part in whole.children()
    }


def _unable(name: str, layer: nn.Module, calls: Calls, owners: Mapping[int, list[str]]) -> str:
    """Why a layer cannot be replaced by another."""
    if own := _unsupported(name, layer):
        return own
    others = [owner for own in layer.parameters() for owner in owners[id(own)] if owner != name]
    if others:
        return f"unsupported: its weights are those of {others[0]} too"
    if not calls:
        return "unsupported: the example input does not go through it by a call"
    if not all(call.alone for call in calls):
        return "unsupported: it is called with more than its input"
    geometry = geometry_of(layer)
    return "depthwise" if geometry.kernel and geometry.groups == geometry.inputs > 1 else ""


def _unsupported(name: str, layer: nn.Module) -> str:
    """Why a layer cannot, whatever it is called with."""
    kind = type(layer)
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    own = dict((*layer.named_buffers(recurse=False), *layer.named_parameters(recurse=False)))
    weight = own.get("weight")
    real = isinstance(weight, Tensor) and weight.is_floating_point()
    rules = {
        "factorised already": isinstance(layer, FactorisedLayer),
        "its weight is parametrised already": parametrize.is_parametrized(layer),
        f"unsupported: {kind.__name__} is no linear layer or convolution of torch.nn": kind not in KINDS,
        "unsupported: it is the whole model, put it into an nn.Sequential": not name,
        "unsupported: it has hooks, which another layer would not have": bool(hooked),
        "unsupported: its weight has no real values": not real,
        "unsupported: its weight has no values": isinstance(weight, Tensor) and not weight.numel(),
    }
    return next((reason for reason, holds in rules.items() if holds), "")


def _small(layer: nn.Module) -> str:
    kernel = geometry_of(layer).kernel
    return "1x1" if kernel and prod(kernel) == 1 else ""
