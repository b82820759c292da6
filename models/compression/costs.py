"""What layers cost, as they are: parameters, MACs counted in both ways, and the peak of activations.

Counted are linear layers and convolutions; the rest of a network costs little and is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from models.compression.tracing import Calls, geometry
from models.convolutions import Geometry
from models.rsdtr.layers import REBUILD, FactorisedLayer
from models.rsdtr.low_rank import LowRankShape
from models.rsdtr.steps import Cost, cost_of
from models.sttp.lowrank import FACTORED
from models.sttp.parametrizations import Spectral, spectral_of


@dataclass(frozen=True)
class LayerCost:
    """Of all calls of a layer: MACs of the factorised form and of what is executed; the largest activation.

    A layer without factors has the same MACs in both ways.
    """

    parameters: int
    macs: int
    executed: int
    activation: int


def cost_of_layer(layer: nn.Module, calls: Calls) -> LayerCost:
    """Of a layer of `tracing.COUNTED`, spectral or factorised or plain."""
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    if isinstance(layer, FactorisedLayer):
        factorised = [_total(layer, calls, plan) for plan in layer.plans if plan != REBUILD]
        executed = _total(layer, calls, layer.plan)
        return LayerCost(
            parameters, min(cost.macs for cost in factorised), executed.macs, executed.activation
        )
    found = geometry(layer)
    dense = _summed(
        (call.times, Cost(found.macs(call.spatial), found.activation(call.spatial))) for call in calls
    )
    spectral = spectral_of(layer)
    if spectral is None:
        return LayerCost(parameters, dense.macs, dense.macs, dense.activation)
    low = _spectral_cost(found, spectral, calls)
    run = low if is_factored(layer) else dense
    return LayerCost(parameters, low.macs, run.macs, run.activation)


def fewest_macs_plan(layer: FactorisedLayer, calls: Calls) -> str:
    """Of the plans that use the factors, the one of the fewest MACs."""
    plans = [plan for plan in layer.plans if plan != REBUILD]
    return min(plans, key=lambda plan: _total(layer, calls, plan).macs)


def network_macs(model: nn.Module, calls: Mapping[str, Calls]) -> tuple[int, int]:
    """(factorised, executed) of all layers that were called."""
    costs = [cost_of_layer(model.get_submodule(name), made) for name, made in calls.items()]
    return sum(cost.macs for cost in costs), sum(cost.executed for cost in costs)


def is_factored(layer: nn.Module) -> bool:
    """Whether a spectral layer is computed from its factors."""
    own = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    return own in set(FACTORED.values())


def _total(layer: FactorisedLayer, calls: Calls, plan: str) -> Cost:
    return _summed((call.times, layer.cost(call.spatial, plan)) for call in calls)


def _spectral_cost(found: Geometry, spectral: Spectral, calls: Calls) -> Cost:
    """r filters with the kernel, then a layer of one voxel."""
    steps = LowRankShape(found.block_shape, (), spectral.layout.width).steps()
    return _summed((call.times, cost_of(found, steps, call.spatial)) for call in calls)


def _summed(costs: Iterable[tuple[int, Cost]]) -> Cost:
    taken = list(costs)
    macs = sum(times * cost.macs for times, cost in taken)
    return Cost(macs, max((times * cost.activation for times, cost in taken), default=0))
