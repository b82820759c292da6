"""The plan of a layer, chosen by the clock; what takes more memory than allowed is not timed at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from models.errors import InvalidConfig
from models.rsdtr.layers import REBUILD, FactorisedLayer

GAIN = 0.9
"""Of the time of `rebuild` that another plan may take to be preferred: less is the clock's noise."""


@dataclass(frozen=True)
class PlanChoice:
    """The plan, the seconds of each that was timed, and the activation of each that was not."""

    plan: str
    seconds: dict[str, float]
    refused: dict[str, int]


def choose_plan_(
    layer: FactorisedLayer, x: Tensor, *, max_activation: float = 1.0, repeats: int = 9
) -> PlanChoice:
    """Set the layer's plan to the fastest in evaluation for inputs like `x` (n, c, *spatial).

    Plans that read and write more numbers at a step than `max_activation` times the dense layer's are left
    out; `rebuild`, which is the dense layer, never is. Times are the medians of `repeats`, in turns; of a
    single thread they are the processor's. Raises InvalidConfig for a limit below 1, InvalidShape as
    `Geometry.output_shape`.
    """
    if not max_activation >= 1:
        raise InvalidConfig("max_activation", max_activation, "at least 1: the dense layer's own")
    spatial = tuple(x.shape[2:]) if layer.geometry.kernel else ()
    limit = max_activation * layer.geometry.activation(spatial)
    needs = {plan: layer.cost(spatial, plan).activation for plan in layer.plans}
    timed = [plan for plan in layer.plans if plan == REBUILD or needs[plan] <= limit]
    seconds = _medians(layer, x, timed, repeats) if len(timed) > 1 else {}
    layer.plan = min(timed, key=lambda plan: seconds.get(plan, 0.0) * (GAIN if plan == REBUILD else 1))
    return PlanChoice(layer.plan, seconds, {plan: needs[plan] for plan in layer.plans if plan not in timed})


def _medians(layer: FactorisedLayer, x: Tensor, plans: list[str], repeats: int) -> dict[str, float]:
    """The first, unmeasured round makes what is kept."""
    seconds: dict[str, list[float]] = {plan: [] for plan in plans}
    with _evaluating(layer), torch.no_grad():
        for _ in range(repeats + 1):
            for plan in plans:
                layer.plan = plan
                seconds[plan].append(_seconds(layer, x))
    return {plan: median(taken[1:]) for plan, taken in seconds.items()}


def _seconds(layer: FactorisedLayer, x: Tensor) -> float:
    alone = x.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    start = clock()
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return clock() - start


@contextmanager
def _evaluating(layer: FactorisedLayer) -> Iterator[None]:
    training = layer.training
    layer.eval()
    try:
        yield
    finally:
        layer.train(training)
