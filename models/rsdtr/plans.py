"""The plan of a layer, chosen by the clock; what takes more memory than allowed is not timed at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InvalidConfig
from models.rsdtr.layers import REBUILD, FactorisedLayer

GAIN = 0.95
"""Of the time of `rebuild` that another plan may take to be preferred: less is the clock's noise."""


@dataclass(frozen=True)
class PlanChoice:
    """The plan, the seconds of each that was timed, and the activation of each that was not."""

    plan: str
    seconds: dict[str, float]
    refused: dict[str, int]


def choose_plan_(
    layer: FactorisedLayer, x: Tensor, *, max_activation: float = 1.0, repeats: int = 5
) -> PlanChoice:
    """Set the layer's plan to the fastest in evaluation for inputs like `x` (n, c, *spatial).

    Plans that read and write more numbers at a step than `max_activation` times the dense layer's are left
    out; `rebuild`, which is the dense layer, never is. Times are the least of `repeats`, in turns. Raises
    InvalidConfig for a limit below 1, InvalidShape as `Geometry.output_shape`.
    """
    if not max_activation >= 1:
        raise InvalidConfig("max_activation", max_activation, "at least 1: the dense layer's own")
    spatial = tuple(x.shape[2:]) if layer.geometry.kernel else ()
    limit = max_activation * layer.geometry.activation(spatial)
    needs = {plan: layer.cost(spatial, plan).activation for plan in layer.plans}
    timed = [plan for plan in layer.plans if plan == REBUILD or needs[plan] <= limit]
    seconds = _least_seconds(layer, x, timed, repeats) if len(timed) > 1 else {}
    layer.plan = min(timed, key=lambda plan: seconds.get(plan, 0.0) * (GAIN if plan == REBUILD else 1))
    return PlanChoice(layer.plan, seconds, {plan: needs[plan] for plan in layer.plans if plan not in timed})


def _least_seconds(layer: FactorisedLayer, x: Tensor, plans: list[str], repeats: int) -> dict[str, float]:
    """The first, unmeasured round makes what is kept."""
    seconds = dict.fromkeys(plans, float("inf"))
    with _evaluating(layer), torch.no_grad():
        for turn in range(repeats + 1):
            for plan in plans:
                layer.plan = plan
                taken = _seconds(layer, x)
                seconds[plan] = min(seconds[plan], taken) if turn else seconds[plan]
    return seconds


def _seconds(layer: FactorisedLayer, x: Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


@contextmanager
def _evaluating(layer: FactorisedLayer) -> Iterator[None]:
    training = layer.training
    layer.eval()
    try:
        yield
    finally:
        layer.train(training)
