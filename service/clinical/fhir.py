"""A prediction as FHIR, R4 (4.0.1) and R5 (5.0.0): a collection of DiagnosticReport, Observation and Device.

Nobody has verified a prediction. So the observation is `preliminary`, "data may be incomplete or unverified",
and the report `partial`, which the value set defines in the same words: a report's `preliminary` says
"verified early results".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from service.clinical import uuids
from service.clinical.fhir_types import (
    Element,
    concept,
    identifier,
    masked,
    narrative,
    notes,
    to,
)
from service.clinical.observation import components, value
from service.clinical.prediction import SOFTWARE, Report, printable

_CATEGORIES = "http://terminology.hl7.org/CodeSystem/observation-category"
_SECTIONS = "http://terminology.hl7.org/CodeSystem/v2-0074"
_LOINC = "http://loinc.org"
_DICOM_UIDS = "urn:dicom:uid"


@dataclass(frozen=True)
class Release:
    """What a release of FHIR says otherwise than another: the report's study, and the names of a device."""

    version: str
    study: str
    named: Callable[[str], Element]
    note_of_report: bool


R4 = Release(
    "4.0",
    study="imagingStudy",
    named=lambda name: {
        "deviceName": [{"name": name, "type": "model-name"}],
        "type": {"text": _KIND_OF_DEVICE},
    },
    note_of_report=False,
)
R5 = Release(
    "5.0",
    study="study",
    named=lambda name: {
        "name": [{"value": name, "type": "user-friendly-name", "display": True}],
        "type": [{"text": _KIND_OF_DEVICE}],
    },
    note_of_report=True,
)
RELEASES = {release.version: release for release in (R4, R5)}
_KIND_OF_DEVICE = "software: a trained regression model"


def document(report: Report, release: Release) -> bytes:
    """The bundle as JSON (UTF-8). Numbers are those of the result, to the last bit."""
    return json.dumps(_bundle(report, release), ensure_ascii=False, allow_nan=False).encode()


def _bundle(report: Report, release: Release) -> Element:
    observed = uuids.part(report.identity, "observation")
    return {
        "resourceType": "Bundle",
        "id": str(uuids.part(report.identity, "bundle")),
        "identifier": identifier(uuids.part(report.identity, "bundle")),
        "type": "collection",
        "timestamp": _instant(report),
        "entry": [
            _entry(report.identity, _report(report, release, observed)),
            _entry(observed, _observation(report, observed)),
            _entry(report.device, _device(report, release)),
        ],
    }


def _entry(named: uuid.UUID, resource: Element) -> Element:
    return {"fullUrl": uuids.urn(named), "resource": resource}


def _report(report: Report, release: Release, observed: uuid.UUID) -> Element:
    return {
        "resourceType": "DiagnosticReport",
        "id": str(report.identity),
        "text": narrative([report.summary, *report.remarks()]),
        "identifier": [identifier(report.identity)],
        "status": "partial",
        "category": [concept(_SECTIONS, "IMG", "Diagnostic Imaging")],
        "code": concept(_LOINC, "18748-4", "Diagnostic imaging study", f"Prediction of {report.target}"),
        "subject": _subject(),
        "_effectiveDateTime": {"extension": masked()},
        "issued": _instant(report),
        "result": [to("Observation", observed, report.target)],
        release.study: [_study(report)],
        "conclusion": report.summary,
        **({"note": notes([printable(report.prediction.notice)])} if release.note_of_report else {}),
    }


def _observation(report: Report, observed: uuid.UUID) -> Element:
    return {
        "resourceType": "Observation",
        "id": str(observed),
        "text": narrative([report.summary]),
        "identifier": [identifier(observed)],
        "status": "preliminary",
        "category": [concept(_CATEGORIES, "imaging", "Imaging")],
        "code": {"text": report.target},
        "subject": _subject(),
        "_effectiveDateTime": {"extension": masked()},
        "issued": _instant(report),
        **value(report),
        "note": notes([printable(report.prediction.notice), *report.remarks()]),
        "method": {"text": f"{SOFTWARE}, regressor {printable(report.prediction.regressor)}"},
        "device": to("Device", report.device, _device_name(report)),
        "derivedFrom": [_study(report)],
        "component": list(components(report)),
    }


def _device(report: Report, release: Release) -> Element:
    told = report.prediction
    return {
        "resourceType": "Device",
        "id": str(report.device),
        "text": narrative([_device_name(report), f"sha-256 {told.model_digest}", printable(told.notice)]),
        "identifier": [
            {"type": {"text": "sha-256 of the model's file"}, "value": told.model_digest},
            {"type": {"text": "the job that made the model"}, "value": told.model},
        ],
        "status": "active",
        "manufacturer": SOFTWARE,
        **release.named(_device_name(report)),
        "version": [
            {"type": {"text": name}, "value": number} for name, number in sorted(told.packages.items())
        ],
        "note": notes([printable(told.notice)]),
    }


def _device_name(report: Report) -> str:
    return f"{SOFTWARE} model of {report.target}"


def _subject() -> Element:
    """Somebody: who is known where the scan came from, and never here."""
    return {"extension": masked(), "type": "Patient", "display": "not known to this service"}


def _study(report: Report) -> Element:
    """The scan's study by a name that the structured report has, too."""
    named = {"system": _DICOM_UIDS, "value": f"urn:oid:{report.study}"}
    return {"type": "ImagingStudy", "identifier": named, "display": report.scan}


def _instant(report: Report) -> str:
    return report.issued.isoformat(timespec="milliseconds")
