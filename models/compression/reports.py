"""A compressed model beside the one that it came from: what it saves, and what it changes.

Parameters over parameters is PCR, MACs over MACs is FCR: by the factorised forms, as the papers count, and by
what is executed. Answers are compared in pairs: the largest change, Bland & Altman's limits of agreement
(mean +- 1.96 standard deviations of the differences), and the difference of a metric with the interval of a
paired bootstrap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from models.compression.costs import network_macs
from models.compression.eligible import KINDS
from models.compression.files import to_bytes
from models.compression.forms import relative_error
from models.compression.plans import CompressionPlan
from models.compression.tracing import COUNTED, Example, answered, evaluating, geometry, traced
from models.errors import InvalidConfig, InvalidShape, ModelError, refuse_non_finite
from models.rsdtr.canonical_layer import CanonicalConv
from models.rsdtr.layers import FactorisedLayer, LowRankConv, LowRankLinear, RingConv
from models.sttp.bounds import Bound, Rule, layer_bound, operator_bound

REPEATS = 20
RESAMPLES = 1000
AGREEMENT = 1.96
"""Standard deviations to the limits of agreement."""

Metric = Callable[[Tensor, Tensor], float]
"""(answers (n, ...), targets (n, ...)) -> a number."""


@dataclass(frozen=True)
class Latency:
    """Seconds for the example input: of the process, or of the wall for models on a GPU."""

    median: float
    p95: float


@dataclass(frozen=True)
class Change:
    """Of answers, after less before: the largest magnitude, the mean, and the limits of agreement."""

    largest: float
    mean: float
    lower: float
    upper: float


@dataclass(frozen=True)
class MetricChange:
    """A metric of both models, after less before, and the 95 % interval of that by a paired bootstrap."""

    before: float
    after: float
    difference: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Report:
    """What compression saves and what it changes. Pairs are (before, after).

    `fcr` is by the factorised forms, `fcr_executed` by what runs. `layer_errors` are the relative errors of
    kernels, `bounds` the certified bounds of the whole networks, None where a module has none.
    """

    pcr: float
    fcr: float
    fcr_executed: float
    parameters: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    latency: tuple[Latency, Latency]
    layer_errors: dict[str, float]
    bounds: tuple[float | None, float | None]
    change: Change | None = None
    metric: MetricChange | None = None

    @property
    def largest_layer_error(self) -> float:
        """0 where no layer is compressed."""
        return max(self.layer_errors.values(), default=0.0)


def report(
    before: nn.Module,
    after: nn.Module,
    example_input: Example,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    metric: Metric | None = None,
    *,
    plan: CompressionPlan | None = None,
    repeats: int = REPEATS,
) -> Report:
    """Compare two models in evaluation; both are left as they are.

    `batches` are (inputs, targets), of one sample each along the first axis; `metric` (answers, targets) is
    taken of all together. `plan` goes into the file that is counted. Raises InvalidShape, naming the layer,
    for inputs that do not go through, and for a metric without batches; InvalidConfig for no repeats.
    """
    if repeats < 1:
        raise InvalidConfig("repeats", repeats, "at least 1")
    if metric is not None and batches is None:
        raise InvalidShape("a metric needs batches of (inputs, targets)")
    parameters = (_parameters(before), _parameters(after))
    macs, dense = network_macs(before, traced(before, example_input))
    compact, executed = network_macs(after, traced(after, example_input))
    change, of_metric = None, None
    with evaluating(before, after):
        if batches is not None:
            change, of_metric = _compared(before, after, batches, metric)
        latency = _latencies(before, after, example_input, repeats)
        bounds = (_bound(before), _bound(after))
    return Report(
        pcr=_ratio(*parameters),
        fcr=_ratio(macs, compact),
        fcr_executed=_ratio(dense, executed),
        parameters=parameters,
        macs=(macs, compact),
        bytes=(len(to_bytes(before)), len(to_bytes(after, plan))),
        latency=latency,
        layer_errors=_layer_errors(before, after),
        bounds=bounds,
        change=change,
        metric=of_metric,
    )


def agreement(before: Tensor, after: Tensor) -> Change:
    """Bland & Altman's limits of two models' answers of the same shape. Raises InvalidShape for none."""
    if before.shape != after.shape or not before.numel():
        raise InvalidShape(
            f"answers of shapes {tuple(before.shape)} and {tuple(after.shape)} cannot be compared"
        )
    differences = (after.double() - before.double()).flatten()
    mean = float(differences.mean())
    spread = AGREEMENT * float(differences.std()) if len(differences) > 1 else 0.0
    return Change(float(differences.abs().max()), mean, mean - spread, mean + spread)


def bootstrapped(before: Tensor, after: Tensor, targets: Tensor, metric: Metric) -> MetricChange:
    """A metric of both models and the percentiles of its difference over resampled samples, in pairs.

    The same answers give the same interval.
    """
    first, second = metric(before, targets), metric(after, targets)
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(targets), (len(targets),), generator=generator)
        differences.append(metric(after[rows], targets[rows]) - metric(before[rows], targets[rows]))
    lower, upper = torch.tensor(differences, dtype=torch.float64).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    return MetricChange(first, second, second - first, float(lower), float(upper))


def _compared(
    before: nn.Module,
    after: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    metric: Metric | None,
) -> tuple[Change, MetricChange | None]:
    firsts: list[Tensor] = []
    seconds: list[Tensor] = []
    wanted: list[Tensor] = []
    for inputs, targets in batches:
        pair = [answered(model, inputs) for model in (before, after)]
        _refuse_uncomparable(pair, targets, len(firsts))
        for answers, all_of_it in zip((*pair, targets), (firsts, seconds, wanted), strict=True):
            all_of_it.append(answers.cpu())
    if not firsts:
        raise InvalidShape("there is no batch to compare the models by: give at least one")
    first, second, target = torch.cat(firsts), torch.cat(seconds), torch.cat(wanted)
    change = agreement(first, second)
    return change, None if metric is None else bootstrapped(first, second, target, metric)


def _refuse_uncomparable(pair: list[Any], targets: Tensor, number: int) -> None:
    """Raise InvalidShape for answers that are no tensor, or of other samples than the targets; NonFinite."""
    for which, answers in zip(("first", "second"), pair, strict=True):
        if not isinstance(answers, Tensor) or not answers.ndim:
            raise InvalidShape(
                f"the {which} model answers with {type(answers).__name__}: one tensor is compared"
            )
        if len(answers) != len(targets):
            raise InvalidShape(
                f"batch {number} has {len(targets)} targets, and the {which} model {len(answers)} answers"
            )
        refuse_non_finite(answers, f"the {which} model's answers to batch {number}")


def _latencies(
    before: nn.Module, after: nn.Module, example: Example, repeats: int
) -> tuple[Latency, Latency]:
    """In turns; the first round is not counted."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for model, seconds in zip((before, after), taken, strict=True):
            seconds.append(_seconds(model, example))
    first, second = (_latency(seconds[1:]) for seconds in taken)
    return first, second


def _latency(seconds: list[float]) -> Latency:
    return Latency(median(seconds), float(torch.tensor(seconds, dtype=torch.float64).quantile(0.95)))


def _seconds(model: nn.Module, example: Example) -> float:
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    clock = time.perf_counter if on_gpu else time.process_time
    inputs = example if isinstance(example, tuple) else (example,)
    start = clock()
    model(*inputs)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def _layer_errors(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """||W - W^|| / ||W|| of the layers with another kernel, by the names that both have."""
    others = dict(after.named_modules())
    found = {}
    for name, layer in before.named_modules():
        other = others.get(name)
        if type(layer) not in KINDS or not isinstance(other, COUNTED):
            continue
        if geometry(layer).kernel_shape != geometry(other).kernel_shape:
            raise InvalidShape(f"{name} has another kernel in the second model: they are of different ones")
        if error := relative_error(layer, other):
            found[name] = error
    return found


def _bound(model: nn.Module) -> float | None:
    """The certified bound of a network, where all of its modules have one."""
    rules: dict[type[nn.Module], Rule] = {
        RingConv: _bound_of_factors,
        LowRankConv: _bound_of_factors,
        CanonicalConv: _bound_of_factors,
        LowRankLinear: _bound_of_factors,
    }
    try:
        return operator_bound(model, rules)
    except ModelError:
        return None


def _bound_of_factors(layer: nn.Module, _: Bound) -> float:
    assert isinstance(layer, FactorisedLayer)
    return layer_bound(layer.folded())


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _ratio(before: int, after: int) -> float:
    return before / after if after else 1.0
