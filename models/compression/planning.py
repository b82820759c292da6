"""`plan(model, example_input, config)`: what compression would do, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from models.compression.budgets import BudgetConfig
from models.compression.choosing import (
    Forms,
    OpenLayers,
    Whole,
    budgeted_forms,
    ring_forms,
    spectral_forms,
)
from models.compression.costs import LayerCost, cost_of_layer, fewest_macs_plan
from models.compression.curvature import Curvature
from models.compression.eligible import Filter, reasons
from models.compression.forms import formed, relative_error
from models.compression.plans import CompressionPlan, LayerPlan, digest_of
from models.compression.search import LayerSearch
from models.compression.tracing import COUNTED, Calls, Example, traced
from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import REBUILD, FactorisedLayer
from models.sttp.apply import SpectralConfig
from models.training import ignore
from models.types import Report

SEARCHING, FACTORISING = "searching", "factorising"
"""What a `Report` is told: searches of layers, as often as a budget asks, and layers in their forms."""

FEWEST = "fewest"
"""The execution of the fewest MACs; the other is REBUILD, the dense convolution with a kernel kept."""

NO_GAIN = "no gain: nothing within the error has fewer parameters and no more MACs"
BUDGET = "the budget is met without it"

Config = RingConfig | BudgetConfig | SpectralConfig


def plan(
    model: nn.Module,
    example_input: Example,
    config: Config,
    filter_fn: Filter | None = None,
    *,
    execution: str | None = None,
    curvature: Curvature | None = None,
    known: dict[str, LayerSearch] | None = None,
    report: Report = ignore,
) -> CompressionPlan:
    """A plan for the model, which is left as it is; costs are those for the example input.

    Without a filter the stem, the head and kernels of one voxel stay dense; a filter (layer, name) decides
    itself. `execution` of rings and SVDs is "rebuild" or "fewest" (MACs); None is "fewest" for a budget of
    MACs. With a `curvature` errors are measured by what they do to the answers, and `eps` is that of all
    layers together. `known` keeps searches from plan to plan of one model, which differ in eps or in a target
    alone. The same weights, shapes and settings give the same plan, byte for byte. `report` is
    called before each layer, with the phases SEARCHING and FACTORISING; what it raises ends the planning.

    Raises NonFinite, naming the parameter, for weights that are not finite; InvalidShape, naming the layer,
    for an input that does not go through; InvalidConfig, with what can be met, for a budget that cannot.
    """
    _refuse_unusable(model)
    chosen = _execution(config, execution)
    calls = traced(model, example_input)
    told = reasons(model, calls, filter_fn)
    layers = {name: model.get_submodule(name) for name in told}
    before = {name: _cost(layer, calls.get(name, ())) for name, layer in layers.items()}
    open_ = {name: layers[name] for name, reason in told.items() if not reason}
    parameters, size = sum(own.numel() for own in model.parameters()), _bytes(model)
    other_macs = sum(cost.executed for name, cost in before.items() if name not in open_)
    searches = {} if known is None else known
    of = OpenLayers(open_, calls, curvature, _searching(config, curvature, len(open_), report), searches)
    forms = _forms(of, config, Whole(parameters, size, other_macs))
    kept = BUDGET if isinstance(config, BudgetConfig) else NO_GAIN
    planned, saved = [], 0
    for number, (name, layer) in enumerate(layers.items()):
        report(FACTORISING, number, len(layers))
        kind, cost, form = type(layer).__name__, before[name], forms.get(name)
        if form is None:
            planned.append(LayerPlan(name, kind, cost, cost, reason=told[name] or kept))
            continue
        made = formed(layer, form, name, None if curvature is None else curvature.metric(name))
        if isinstance(made, FactorisedLayer) and chosen == FEWEST:
            made.plan = fewest_macs_plan(made, calls[name])
            form = replace(form, execution=made.plan)
        saved += _bytes(layer) - _bytes(made)
        error = float(f"{relative_error(layer, made):.6g}")
        planned.append(LayerPlan(name, kind, cost, cost_of_layer(made, calls[name]), error, form))
    return CompressionPlan(
        digest_of(model),
        repr(config),
        parameters,
        size,
        size - saved,
        tuple(planned),
        None if curvature is None else curvature.digest,
    )


def _forms(of: OpenLayers, config: Config, whole: Whole) -> Forms:
    if isinstance(config, SpectralConfig):
        return spectral_forms(of, config)
    return ring_forms(of, config) if isinstance(config, RingConfig) else budgeted_forms(of, config, whole)


def _searching(
    config: Config, curvature: Curvature | None, layers: int, report: Report
) -> Callable[[int], None]:
    """How a search is reported: for an error of each layer they are searched once, else nobody knows."""
    total = layers if isinstance(config, RingConfig) and curvature is None else None
    return lambda done: report(SEARCHING, done, total)


def _refuse_unusable(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InvalidShape(f"{name} of the model has no values before its first input: give it one")
        if parameter.is_meta:
            raise InvalidShape(f"{name} of the model is on the meta device and has no values: load them")
        refuse_non_finite(parameter.detach(), f"{name} of the model")


def _execution(config: Config, execution: str | None) -> str:
    counts_macs = isinstance(config, BudgetConfig) and config.macs is not None
    chosen = execution or (FEWEST if counts_macs else REBUILD)
    if chosen not in (REBUILD, FEWEST) or (counts_macs and chosen != FEWEST):
        raise InvalidConfig(
            "execution", execution, f"{REBUILD!r} or {FEWEST!r}, and {FEWEST!r} for a budget of MACs"
        )
    return chosen


def _cost(layer: nn.Module, calls: Calls) -> LayerCost:
    if isinstance(layer, COUNTED):
        return cost_of_layer(layer, calls)
    return LayerCost(sum(own.numel() for own in layer.parameters(recurse=False)), 0, 0, 0)


def _bytes(module: nn.Module) -> int:
    """Of all tensors, each once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
