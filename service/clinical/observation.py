"""The value and the components of a prediction's Observation (FHIR R4 and R5 alike).

There is no standard place for a prediction interval, so it is a component, and its ends are a Range. A
prediction set is a component for each class in it, all with the same code, as the specification's examples
of several answers to one question have it.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.clinical import units
from service.clinical.fhir_types import CODES, Element, absent, coded, concept, quantity
from service.clinical.prediction import NO_INTERVAL, Interval, Report, printable


def value(report: Report) -> Element:
    """The answer as a `value[x]`, or why there is none."""
    told = report.prediction
    if told.value is not None:
        return {"valueQuantity": quantity(told.value, report.unit)}
    if told.class_name is not None:
        return {"valueCodeableConcept": {"text": printable(told.class_name)}}
    return {"dataAbsentReason": absent("the model gave no answer")}


def components(report: Report) -> Iterator[Element]:
    """What goes with the answer, each with a code of its own."""
    told = report.prediction
    yield from (_interval(each, report.unit) for each in told.intervals)
    for quantile in told.quantiles:
        code = _code(f"quantile-{quantile.level:g}", f"quantile at {quantile.level:g}")
        yield {"code": code, "valueQuantity": quantity(quantile.value, report.unit)}
    for each in told.probabilities:
        code = _code("probability", "probability of a class", f"probability of {printable(each.name)}")
        yield {"code": code, "valueQuantity": coded(units.ONE, each.value)}
    for level, names in told.sets.items():
        code = _code(f"set-{level:g}", f"{100 * level:g} % prediction set")
        yield from ({"code": code, "valueCodeableConcept": {"text": printable(name)}} for name in names)
    yield from _likeness(report)
    for name, number in told.covariates.items():
        code = _code("covariate", "number that was given beside the scan", f"given: {printable(name)}")
        yield {"code": code, "valueQuantity": quantity(number, "")}


def _interval(interval: Interval, unit: str) -> Element:
    code = _code(f"interval-{interval.level:g}", f"{interval.share} prediction interval")
    if interval.low is None or interval.high is None:
        return {"code": code, "dataAbsentReason": absent(NO_INTERVAL)}
    ends = {"low": quantity(interval.low, unit), "high": quantity(interval.high, unit)}
    return {"code": code, "valueRange": ends}


def _likeness(report: Report) -> Iterator[Element]:
    """How far the scan is from those that the model learnt from."""
    told = report.prediction
    if told.distance_percentile is not None:
        code = _code("distance-percentile", "percentile of the scan's distance among the training's scans")
        yield {"code": code, "valueQuantity": coded(units.PERCENT, told.distance_percentile)}
    code = _code("like-training", "whether the scan is like those that the model learnt from")
    yield {"code": code, "valueString": printable(told.verdict)}


def _code(code: str, display: str, text: str | None = None) -> Element:
    return concept(CODES, code, display, text)
