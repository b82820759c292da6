"""`plan(model, example_input, config)`: what compression would do, before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from torch import nn

from models.compression.budgets import BudgetConfig, within
from models.compression.costs import LayerCost, cost_of_layer, fewest_macs_plan
from models.compression.eligible import Filter, reasons
from models.compression.forms import Form, formed, relative_error
from models.compression.plans import CompressionPlan, LayerPlan, digest_of
from models.compression.search import Choice, LayerSearch
from models.compression.tracing import COUNTED, Calls, Example, traced
from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import REBUILD, FactorisedLayer
from models.sttp.apply import SpectralConfig
from models.sttp.weights import weight_shape
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
    report: Report = ignore,
) -> CompressionPlan:
    """A plan for the model, which is left as it is; costs are those for the example input.

    Without a filter the stem, the head and kernels of one voxel stay dense; a filter (layer, name) decides
    itself. `execution` of rings and SVDs is "rebuild" or "fewest" (MACs); None is "fewest" for a budget of
    MACs. The same weights, shapes and settings give the same plan, byte for byte. `report` is called before
    each layer, with the phases SEARCHING and FACTORISING; what it raises ends the planning.

    Raises NonFinite, naming the parameter, for weights that are not finite; InvalidShape, naming the layer,
    for an input that does not go through; InvalidConfig, with what can be met, for a budget that cannot.
    """
    _refuse_unusable(model)
    chosen = _execution(config, execution)
    calls = traced(model, example_input)
    told = reasons(model, calls, filter_fn)
    layers = {name: model.get_submodule(name) for name in told}
    open_ = {name: layers[name] for name, reason in told.items() if not reason}
    before = {name: _cost(layer, calls.get(name, ())) for name, layer in layers.items()}
    if isinstance(config, SpectralConfig):
        forms = _spectral_forms(open_, config)
    else:
        rest = sum(cost.executed for name, cost in before.items() if name not in open_)
        forms = _ring_forms(model, open_, calls, config, rest, report)
    kept = BUDGET if isinstance(config, BudgetConfig) else NO_GAIN
    planned, saved = [], 0
    for number, (name, layer) in enumerate(layers.items()):
        report(FACTORISING, number, len(layers))
        kind, cost, form = type(layer).__name__, before[name], forms.get(name)
        if form is None:
            planned.append(LayerPlan(name, kind, cost, cost, reason=told[name] or kept))
            continue
        made = formed(layer, form, name)
        if isinstance(made, FactorisedLayer) and chosen == FEWEST:
            made.plan = fewest_macs_plan(made, calls[name])
            form = replace(form, execution=made.plan)
        saved += _bytes(layer) - _bytes(made)
        error = float(f"{relative_error(layer, made):.6g}")
        planned.append(LayerPlan(name, kind, cost, cost_of_layer(made, calls[name]), error, form))
    size = _bytes(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return CompressionPlan(digest_of(model), repr(config), parameters, size, size - saved, tuple(planned))


def _refuse_unusable(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InvalidShape(f"{name} of the model has no values before its first input: give it one")
        refuse_non_finite(parameter.detach(), f"{name} of the model")


def _execution(config: Config, execution: str | None) -> str:
    counts_macs = isinstance(config, BudgetConfig) and config.macs is not None
    chosen = execution or (FEWEST if counts_macs else REBUILD)
    if chosen not in (REBUILD, FEWEST) or (counts_macs and chosen != FEWEST):
        raise InvalidConfig(
            "execution", execution, f"{REBUILD!r} or {FEWEST!r}, and {FEWEST!r} for a budget of MACs"
        )
    return chosen


def _ring_forms(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Mapping[str, Calls],
    config: RingConfig | BudgetConfig,
    rest: int,
    report: Report,
) -> dict[str, Form]:
    """The forms of the layers that change; `rest` are the MACs of those that may not."""
    if isinstance(config, RingConfig):
        found = {}
        for number, (name, layer) in enumerate(layers.items()):
            report(SEARCHING, number, len(layers))
            found[name] = LayerSearch(layer, calls[name], config, name).at(config.eps).form
        return {name: form for name, form in found.items() if form is not None}
    done = count()
    searches = [
        _ReportedSearch(layer, calls[name], config.ring(), name, lambda: report(SEARCHING, next(done), None))
        for name, layer in layers.items()
    ]
    choices = _budgeted(model, searches, config, rest)
    return {
        search.name: choice.form
        for search, choice in zip(searches, choices, strict=True)
        if choice.form is not None
    }


class _ReportedSearch(LayerSearch):
    """A search that calls `before` each time that it is asked for an error anew."""

    def __init__(
        self, layer: nn.Module, calls: Calls, config: RingConfig, name: str, before: Callable[[], None]
    ) -> None:
        super().__init__(layer, calls, config, name)
        self._before = before

    def at(self, eps: float) -> Choice:
        """See `LayerSearch`."""
        if eps not in self._found:
            self._before()
        return super().at(eps)


def _budgeted(
    model: nn.Module, searches: Sequence[LayerSearch], config: BudgetConfig, rest: int
) -> list[Choice]:
    """The choices within the target, less what the rest of the model takes of it."""
    if config.macs is not None:
        return within(
            searches,
            config.macs - rest,
            lambda _, choice: choice.macs,
            lambda least: InvalidConfig("macs", config.macs, f"at least {least + rest:,}, the least found"),
        )
    if config.bytes is not None:
        other = _bytes(model) - sum(search.dense.storage * search.item_size for search in searches)
        return within(
            searches,
            config.bytes - other,
            lambda search, choice: choice.storage * search.item_size,
            lambda least: InvalidConfig(
                "bytes", config.bytes, f"at least {least + other:,}, the least found"
            ),
        )
    assert config.pcr is not None
    total = sum(parameter.numel() for parameter in model.parameters())
    other = total - sum(search.dense.storage for search in searches)
    return within(
        searches,
        int(total / config.pcr) - other,
        lambda _, choice: choice.storage,
        lambda least: InvalidConfig(
            "pcr", config.pcr, f"at most {total / max(1, least + other):.4f}, the most found"
        ),
    )


def _spectral_forms(layers: Mapping[str, nn.Module], config: SpectralConfig) -> dict[str, Form]:
    """Spectral weights of the ranks that the config gives these layers; not where dense is no larger."""
    if config.start != "weight":
        raise InvalidConfig("start", config.start, "'weight': a trained model is compressed by its weights")
    shapes = [weight_shape(layer) for layer in layers.values()]
    forms = {}
    for name, shape, rank in zip(layers, shapes, config.ranks(shapes) if shapes else [], strict=True):
        layout = shape.layout(
            config.method, rank, constant=config.spectrum == "constant", flatten_kernel=config.flatten_kernel
        )
        if layout.parameters < shape.outputs * shape.columns:
            forms[name] = Form(
                config.method,
                (rank,),
                execution=config.execution,
                spectrum=config.spectrum,
                bound=config.bound,
                flatten_kernel=config.flatten_kernel,
            )
    return forms


def _cost(layer: nn.Module, calls: Calls) -> LayerCost:
    if isinstance(layer, COUNTED):
        return cost_of_layer(layer, calls)
    return LayerCost(sum(own.numel() for own in layer.parameters(recurse=False)), 0, 0, 0)


def _bytes(module: nn.Module) -> int:
    """Of all tensors, each once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
