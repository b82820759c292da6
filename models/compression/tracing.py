"""What each layer of a model is called with, by one run of an example input in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from models.convolutions import FORWARD, TRANSPOSED, Geometry, geometry_of
from models.errors import InvalidShape, ModelError, NonFinite
from models.rsdtr.layers import FactorisedLayer

COUNTED: tuple[type[nn.Module], ...] = (nn.Linear, *FORWARD.values(), *TRANSPOSED.values(), FactorisedLayer)
"""What has MACs."""

_REFUSALS = (ModelError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What modules raise at inputs that they do not take."""

Example = Tensor | tuple[Any, ...]
"""A model's input, or all of its positional ones."""


@dataclass(frozen=True)
class Call:
    """`times` applications of a layer to inputs of these spatial sizes; `alone` without further arguments."""

    times: int
    spatial: tuple[int, ...]
    alone: bool


Calls = tuple[Call, ...]


def geometry(layer: nn.Module) -> Geometry:
    """Of a layer of COUNTED."""
    return layer.geometry if isinstance(layer, FactorisedLayer) else geometry_of(layer)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """In evaluation, without gradients; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def answered(model: nn.Module, example: Example) -> Any:
    """The model's answer. Raises InvalidShape, naming the layer that was entered last, where it has none."""
    names = {id(module): name for name, module in model.named_modules()}
    entered: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        entered[:] = [module]

    handles = [
        module.register_forward_pre_hook(enter)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        return model(*(example if isinstance(example, tuple) else (example,)))
    except (torch.OutOfMemoryError, NonFinite):
        raise
    except _REFUSALS as error:
        layer = entered[0] if entered else model
        where = names[id(layer)] or "the model itself"
        raise InvalidShape(
            f"an input {_described(example)} does not go through the model: {where} "
            f"({type(layer).__name__}) says: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def traced(model: nn.Module, example: Example) -> dict[str, Calls]:
    """The calls of each layer of COUNTED, by its first name, in the order of the first calls.

    Raises InvalidShape as `answered`. The model is left as it was.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, list[Call]] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(names[id(layer)], []).extend(_call(layer, args, kwargs))

    counted = [module for module in model.modules() if isinstance(module, COUNTED)]
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in counted]
    try:
        with evaluating(model):
            answered(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(calls) for name, calls in found.items()}


def _call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """None for what the layer itself will refuse."""
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or not x.ndim:
        return []
    alone = len(args) == 1 and not kwargs
    axes = len(geometry(layer).kernel)
    if not axes:
        return [Call(prod(x.shape[:-1]), (), alone)]
    batched = x.ndim == axes + 2
    return [Call(len(x) if batched else 1, tuple(x.shape[-axes:]), alone)]


def _described(example: Example) -> str:
    parts = example if isinstance(example, tuple) else (example,)
    shapes = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    return "of shape " + " and ".join(shapes)
