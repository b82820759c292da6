"""The coarsest plan whose score is still good enough: what an error of weights cannot say, a metric does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from models.compression.applying import compressed
from models.compression.curvature import Curvature
from models.compression.ladders import LEVELS
from models.compression.planning import plan
from models.compression.plans import CompressionPlan
from models.compression.recalibration import recalibrate_
from models.compression.search import LayerSearch
from models.compression.tracing import Example
from models.errors import InvalidConfig
from models.rsdtr.candidates import RingConfig
from models.training import ignore
from models.types import Report

Score = Callable[[nn.Module], float]
"""Of a model, on samples that it was not trained with; larger is better: minus the error, say."""


def plan_within_drop(
    model: nn.Module,
    example_input: Example,
    score: Score,
    max_drop: float,
    *,
    batches: Iterable[Example] = (),
    config: RingConfig | None = None,
    curvature: Curvature | None = None,
    report: Report = ignore,
) -> CompressionPlan:
    """The plan of the largest eps, by bisection, whose score is below the model's by `max_drop` at most.

    Each is scored as compressed and recalibrated, with `batches`, if there are any: they are gone through for
    each. `config` gives the other settings of the search; `curvature` and `report` are as for `plan`. The
    model is left as it is. Raises InvalidConfig for a drop that is negative or no number, and, with the
    smallest drop that was found, for one that even the finest eps exceeds; the others as `plan`.
    """
    if not 0 <= max_drop < float("inf"):
        raise InvalidConfig("max_drop", max_drop, "at least 0, and finite")
    settings, wanted = config or RingConfig(), score(model)
    known: dict[str, LayerSearch] = {}

    def tried(level: int) -> tuple[CompressionPlan, float]:
        finer = replace(settings, eps=LEVELS[level])
        made = plan(model, example_input, finer, curvature=curvature, known=known, report=report)
        copy = compressed(model, made, curvature)
        return made, wanted - score(recalibrate_(copy, batches) if batches else copy)

    best, drop = tried(0)
    if not drop <= max_drop:
        raise InvalidConfig("max_drop", max_drop, f"at least {drop:g}, the drop at eps {LEVELS[0]:g}")
    low, high = 0, len(LEVELS)
    while high - low > 1:
        middle = (low + high) // 2
        made, drop = tried(middle)
        if drop <= max_drop:
            low, best = middle, made
        else:
            high = middle
    return best
