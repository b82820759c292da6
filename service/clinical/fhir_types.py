"""Data types of FHIR that R4 and R5 share: quantities, concepts, references, narratives."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from html import escape
from typing import Any

from service.clinical import units, uuids

Element = dict[str, Any]

CODES = f"urn:oid:{uuids.uid(uuids.NAMESPACE)}"
"""The system of our own codes: docs/clinical-results.md lists them."""
_ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_ABSENT_EXTENSION = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_XHTML = "http://www.w3.org/1999/xhtml"


def quantity(value: float, unit: str) -> Element:
    """A number with its unit: a code of UCUM where it is one, else the text alone."""
    known = units.ucum(unit)
    if known is not None:
        return {"value": value, "unit": unit, "system": units.SYSTEM, "code": known.code}
    return {"value": value, "unit": unit} if unit else {"value": value}


def coded(unit: units.Unit, value: float) -> Element:
    """A number with a unit of UCUM."""
    return {"value": value, "unit": unit.meaning, "system": units.SYSTEM, "code": unit.code}


def concept(system: str, code: str, display: str, text: str | None = None) -> Element:
    """A CodeableConcept of one coding."""
    return {"coding": [{"system": system, "code": code, "display": display}], "text": text or display}


def absent(text: str) -> Element:
    """A `dataAbsentReason`: there should be a value, and it is not known."""
    return concept(_ABSENT, "unknown", "Unknown", text)


def masked() -> list[Element]:
    """The extension in the place of what is kept back for privacy."""
    return [{"url": _ABSENT_EXTENSION, "valueCode": "masked"}]


def identifier(named: uuid.UUID) -> Element:
    """Of a resource, for ever (RFC 3986: a URI)."""
    return {"system": "urn:ietf:rfc:3986", "value": uuids.urn(named)}


def to(kind: str, named: uuid.UUID, display: str) -> Element:
    """A reference to another entry of the bundle."""
    return {"reference": uuids.urn(named), "type": kind, "display": display}


def notes(texts: Iterable[str]) -> list[Element]:
    """Annotations."""
    return [{"text": text} for text in texts]


def narrative(texts: Iterable[str]) -> Element:
    """The resource for human readers."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return {"status": "generated", "div": f'<div xmlns="{_XHTML}">{paragraphs}</div>'}
