"""The codes and content items of a prediction's structured report (PS3.16: TID 300, 1500, 1501, 4019).

Import it where a report is asked for, and not before: highdicom is an extra, and slow to import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes

from service.clinical import units, uuids
from service.clinical.prediction import SOFTWARE, Report, printable

SCHEME = "99TOMOTRAIN"
_LONGEST_MEANING = 63
"""Characters of a LO (PS3.5 6.2), less the space that pads it to an even number of bytes."""
_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")


def observer(report: Report) -> ObservationContext:
    """Who observed: a program, with a model (TID 1001, 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=uuids.uid(report.device),
        name=f"{SOFTWARE} model of {report.target}",
        manufacturer_name=SOFTWARE,
        model_name=printable(report.prediction.regressor),
        serial_number=report.prediction.model_digest,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))


def group(report: Report) -> MeasurementsAndQualitativeEvaluations:
    """All that was predicted, as one measurement group (TID 1501)."""
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=uuids.uid(uuids.part(report.identity, "tracking")), identifier=report.job_id
        ),
        algorithm_id=_algorithm(report),
        measurements=list(_measurements(report)),
        qualitative_evaluations=list(_evaluations(report)),
    )


def words(report: Report) -> ContainerContentItem:
    """What has no number and no code: the evaluations in words of TID 1500."""
    container = ContainerContentItem(name=_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS)
    comments = [(codes.DCM.Comment, remark) for remark in report.remarks()]
    container.ContentSequence = ContentSequence(
        [
            TextContentItem(name=name, value=text, relationship_type=RelationshipTypeValues.CONTAINS)
            for name, text in [(codes.DCM.Conclusion, report.summary), *comments]
        ]
    )
    return container


def _algorithm(report: Report) -> AlgorithmIdentification:
    """TID 4019."""
    told = report.prediction
    given = [f"covariate {printable(name)} = {number!r}" for name, number in told.covariates.items()]
    return AlgorithmIdentification(
        name=f"{SOFTWARE} predict, regressor {printable(told.regressor)}",
        version=printable(told.version),
        parameters=[f"model = {told.model}", f"sha-256 of the model = {told.model_digest}", *given],
        manufacturer=SOFTWARE,
    )


def _measurements(report: Report) -> Iterator[Measurement]:
    """The numbers, each as a DS for readers and as the double that it is (PS3.3 C.18.1)."""
    told, unit = report.prediction, _unit(report.unit)
    if told.value is not None:
        yield Measurement(_named("t", report.target), told.value, unit, derivation=codes.DCM.Estimated)
    for each in told.intervals:
        for end, number in (("low", each.low), ("high", each.high)):
            if number is not None:
                meaning = f"{end} end of the {each.share} prediction interval"
                yield Measurement(_ours(f"{end}-{each.level:g}", meaning), number, unit)
    for quantile in told.quantiles:
        name = _ours(f"quantile-{quantile.level:g}", f"quantile at {quantile.level:g}")
        yield Measurement(name, quantile.value, unit)
    for each_class in told.probabilities:
        name = _named("p", each_class.name, "probability of ")
        yield Measurement(name, each_class.value, _concept(units.ONE))
    if told.distance_percentile is not None:
        name = _ours("distance", "percentile of distance among the training's scans")
        yield Measurement(name, told.distance_percentile, _concept(units.PERCENT))


def _evaluations(report: Report) -> Iterator[QualitativeEvaluation]:
    """The classes: the most probable, and those of each prediction set."""
    told = report.prediction
    if told.class_name is not None:
        yield QualitativeEvaluation(_named("t", report.target), _named("c", told.class_name))
    for level, names in told.sets.items():
        name = _ours(f"set-{level:g}", f"{100 * level:g} % prediction set")
        yield from (QualitativeEvaluation(name, _named("c", each)) for each in names)


def _unit(text: str) -> CodedConcept:
    """A unit of UCUM; for what is none, no units with the text as an annotation."""
    return _concept(units.ucum(text) or units.annotated(text))


def _concept(unit: units.Unit) -> CodedConcept:
    return CodedConcept(unit.code, "UCUM", _meaning(unit.meaning))


def _ours(code: str, meaning: str) -> CodedConcept:
    return CodedConcept(code, SCHEME, meaning)


def _named(prefix: str, name: str, preface: str = "") -> CodedConcept:
    """A code for a name that a cohort's owner chose: the same name has the same code everywhere."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:14]
    return CodedConcept(f"{prefix}-{digest}", SCHEME, _meaning(f"{preface}{printable(name)}"))


def _meaning(text: str) -> str:
    """A LO: no backslash, which would part two values, and not longer than it may be."""
    plain = text.replace("\\", "/")
    return plain if len(plain) <= _LONGEST_MEANING else f"{plain[: _LONGEST_MEANING - 1]}…"
