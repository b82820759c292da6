"""Plans carried out: `compress_` in place and `compressed` on a copy; and executions chosen by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

from models.compression.curvature import Curvature
from models.compression.forms import formed, in_form
from models.compression.plans import CompressionPlan, digest_of
from models.compression.tracing import Example, answered, evaluating
from models.errors import InvalidConfig, InvalidShape
from models.rsdtr.layers import FactorisedLayer
from models.rsdtr.plans import PlanChoice, choose_plan_

Model = TypeVar("Model", bound=nn.Module)


def compress_(model: Model, plan: CompressionPlan, curvature: Curvature | None = None) -> Model:
    """Carry out a plan, in place; returned is the model. Names of modules, and all other layers, stay.

    `curvature` is the one that the plan was made with. All layers are made before the first is exchanged: a
    model that fails is as before. One that is in the plan's forms already is left alone. Raises InvalidConfig
    for a model with other weights than the plan's, and for another curvature.
    """
    layers = {name: _layer(model, name) for name in plan.forms}
    if layers and all(in_form(layers[name], form) for name, form in plan.forms.items()):
        return model
    if (found := digest_of(model)) != plan.digest:
        raise InvalidConfig(
            "plan", plan.digest[:12], f"of this model, whose weights are {found[:12]}: plan anew"
        )
    _refuse_other_curvature(plan, curvature)
    made = {}
    for name, form in plan.forms.items():
        metric = None if curvature is None else curvature.metric(name)
        made[name] = formed(layers[name], form, name, metric)
    exchange_(model, made)
    return model


def compressed(model: Model, plan: CompressionPlan, curvature: Curvature | None = None) -> Model:
    """`compress_` on a copy; the model is left as it is."""
    return compress_(deepcopy(model), plan, curvature)


def choose_plans_(
    model: nn.Module, example_input: Example, *, max_activation: float = 1.0, repeats: int = 9
) -> dict[str, PlanChoice]:
    """Set the execution of each factorised layer to the fastest by the clock: `choose_plan_` for each.

    For inputs as the example makes them. Unlike plans, not the same each time. Raises InvalidShape, naming
    the layer, for an input that does not go through.
    """
    inputs: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, FactorisedLayer):
            handles.append(layer.register_forward_pre_hook(_keeping(inputs, name)))
    try:
        with evaluating(model):
            answered(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: choose_plan_(_layer(model, name), x, max_activation=max_activation, repeats=repeats)  # type: ignore[arg-type]
        for name, x in inputs.items()
    }


def exchange_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in the places of others, by first names, under all names that those have; all or none."""
    by_old = {id(_layer(model, name)): layer for name, layer in layers.items()}
    places = [
        (parent, attribute, child, by_old[id(child)])
        for parent in model.modules()
        for attribute, child in parent._modules.items()
        if child is not None and id(child) in by_old
    ]
    done: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent, attribute, old, new in places:
            setattr(parent, attribute, new)
            done.append((parent, attribute, old))
    except BaseException:
        for parent, attribute, old in done:
            setattr(parent, attribute, old)
        raise


def _refuse_other_curvature(plan: CompressionPlan, curvature: Curvature | None) -> None:
    found = None if curvature is None else curvature.digest
    if found != plan.curvature:
        told, wanted = (each[:12] if each else "none" for each in (found, plan.curvature))
        raise InvalidConfig("curvature", told, f"the one that the plan was made with: {wanted}")


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InvalidShape(f"the model has no layer {name}: the plan is of another one") from error


def _keeping(inputs: dict[str, Tensor], name: str) -> Any:
    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.setdefault(name, args[0].detach())

    return keep
