"""The forms of a job's result, and the one that a client wants: JSON, FHIR, or a DICOM structured report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fastapi import Request, Response

from service.clinical import fhir
from service.clinical.negotiation import Offer, chosen
from service.clinical.prediction import NoPrediction, Report, report_of
from service.conditional import not_modified, unchanged
from service.deps import Services
from service.errors import ApiError, plain
from storage.errors import InvalidParameters, MissingVolume
from storage.exports.dicom import DicomSeries
from storage.jobs import Job
from storage.records import VolumeRecord, VolumeState

JSON, FHIR, DICOM = "application/json", "application/fhir+json", "application/dicom"
_UTF8 = frozenset({"utf-8"})
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_MISSING = "it takes highdicom, which is not installed here: pip install 'tomotrain[clinical]'"


@dataclass(frozen=True)
class Form(Offer):
    """A representation. `write` makes it of a prediction's report; None where the result itself is sent."""

    content_type: str = ""
    write: Callable[[Report, Services], bytes] | None = None
    ending: str | None = None
    """Of the file's name, where a browser is to save it."""

    def refusal(self, untold: str | None) -> str | None:
        """Why a result cannot be had in this form; `untold` is why it has no clinical form."""
        if self.write is None:
            return None
        lacking = self.media_type == DICOM and find_spec("highdicom") is None
        return untold or (_MISSING if lacking else None)


def _fhir(release: fhir.Release) -> Form:
    """FHIR names its release by a parameter of the media type (RESTful API, "FHIR Version Parameter")."""
    return Form(
        FHIR,
        {"fhirversion": frozenset({release.version}), "charset": _UTF8},
        content_type=f"{FHIR}; fhirVersion={release.version}",
        write=lambda report, parts: fhir.document(report, release),
    )


def _structured_report(report: Report, parts: Services) -> bytes:
    from service.clinical import structured_report  # noqa: PLC0415 - highdicom is slow, and an extra

    return structured_report.document(report, _series(parts, report.volume_id))


def _series(parts: Services, volume_id: str) -> DicomSeries | None:
    """A scan as DICOM; None where it is not kept any more, or has no place that DICOM can say."""
    record = _record(parts, volume_id)
    if record is None or record.state is not VolumeState.READY:
        return None
    try:
        return DicomSeries(parts.shelf.take(record).volume)
    except InvalidParameters:
        return None


def _record(parts: Services, volume_id: str) -> VolumeRecord | None:
    try:
        return parts.catalogue.volume(volume_id)
    except MissingVolume:
        return None


FORMS = (
    Form(JSON, {"charset": _UTF8}, content_type=JSON),
    _fhir(fhir.R4),
    _fhir(fhir.R5),
    Form(
        DICOM,
        {"transfer-syntax": frozenset({_EXPLICIT_LITTLE, "*"})},
        content_type=DICOM,
        write=_structured_report,
        ending="dcm",
    ),
)
"""In the order of what a client gets who does not choose."""
RESULT_FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result; the forms of FHIR and DICOM are those of a prediction",
        "content": {
            FHIR: {"schema": {"type": "object"}},
            DICOM: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def result_answer(request: Request, job: Job, parts: Services) -> Response:
    """The result of a job that has succeeded, in the form that `Accept` asks for, with a strong ETag of its
    own; 304 when the client has it. Raises ApiError 406.
    """
    form = _wanted(request, job)
    body = _body(job, form, parts)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept"}
    if unchanged(request, tag):
        return not_modified(tag, headers)
    headers["ETag"] = tag
    if form.ending is not None:
        headers["Content-Disposition"] = f'attachment; filename="{job.id}.{form.ending}"'
    return Response(body, media_type=form.content_type, headers=headers)


def _wanted(request: Request, job: Job) -> Form:
    """The form that `Accept` asks for. Raises ApiError 406: what there is, and why not the rest."""
    untold = _untold(job)
    refusals = {form.content_type: form.refusal(untold) for form in FORMS}
    there = [form for form in FORMS if refusals[form.content_type] is None]
    found = chosen(",".join(request.headers.getlist("accept")), there)
    if found is not None:
        return found
    reasons = [f"{name} is not: {why}" for name, why in refusals.items() if why is not None]
    named = ", ".join(form.content_type for form in there)
    raise ApiError(
        "not-acceptable",
        "; ".join([f"Accept: of this result there is {named}", *reasons]),
        errors=[("#Accept", f"names none of {named}")],
        headers={"Vary": "Accept"},
    )


def _untold(job: Job) -> str | None:
    """Why a job's result has no clinical form."""
    try:
        report_of(job, None)
    except NoPrediction as error:
        return str(error)
    return None


def _body(job: Job, form: Form, parts: Services) -> bytes:
    if form.write is None or job.volume_id is None:
        return json.dumps(plain(job.result), ensure_ascii=False, separators=(",", ":")).encode()
    record = _record(parts, job.volume_id)
    return form.write(report_of(job, None if record is None else record.stored), parts)
