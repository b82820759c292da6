"""`Accept`, as RFC 9110, section 12.5.1 has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.clinical.forms import DICOM, FHIR, FORMS, JSON
from service.clinical.negotiation import chosen, media_ranges

R4, R5 = f"{FHIR}; fhirVersion=4.0", f"{FHIR}; fhirVersion=5.0"


def form_of(accept: str) -> str | None:
    found = chosen(accept, FORMS)
    return None if found is None else found.content_type


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", JSON),
        (" \t", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json; charset=UTF-8", JSON),
        ("application/json;", JSON),
        ("application/json ; ; charset=utf-8", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("application/fhir+json", R4),
        ("application/fhir+json; fhirVersion=4.0", R4),
        ('application/fhir+json;FHIRVERSION="4.0"; charset=utf-8', R4),
        ("application/fhir+json; fhirVersion=5.0", R5),
        (r'application/fhir+json; fhirVersion="5\.0"', R5),
        ("application/dicom", DICOM),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.1", DICOM),
        ("application/dicom; transfer-syntax=*", DICOM),
        ("application/dicom, */*", DICOM),
        ("*/*, application/dicom", DICOM),
        ("application/dicom;q=0.5, application/json;q=0.4", DICOM),
        ("application/dicom;q=0.5, application/json", JSON),
        ("application/json, application/fhir+json; fhirVersion=5.0", JSON),
        ("application/fhir+json; fhirVersion=4.0; q=0.5, application/fhir+json", R5),
        ("application/fhir+json; fhirVersion=4.0; q=0, application/fhir+json; q=0.1", R5),
        ("application/json; q=0, */*; q=0.1", R4),
        ("*/*; q=0.1, application/json; q=0.001, application/fhir+json; q=0", DICOM),
        ("application/dicom; q=1.000, application/json; q=0.999", DICOM),
        ('text/plain; note="a, application/dicom", application/json', JSON),
        ("application/fhir+json; q=1.5, application/json", JSON),
        ("application/fhir+json; q=x, application/json; q=0.1", JSON),
        ("application/fhir+json; fhirVersion, application/json; q=0.1", JSON),
        ("application/dicom; q=0.9; level=1, application/json; q=0.1", DICOM),
    ],
)
def test_what_is_asked_for_is_chosen(accept: str, form: str) -> None:
    assert form_of(accept) == form


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/fhir+xml",
        "application/fhir+json; fhirVersion=3.0",
        "application/fhir+json; fhirVersion=4.3",
        "application/fhir+json; fhirVersion=4.0; fhirVersion=5.0",
        "application/json; fhirVersion=4.0",
        "application/json; charset=latin-1",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50",
        "application/json; q=0",
        "*/*; q=0",
        "*/*;q=0.000, text/plain",
        "*/json",
        "application",
        ",,,",
        "application/json application/dicom",
        '"application/json"',
    ],
)
def test_what_there_is_not_is_not_chosen(accept: str) -> None:
    assert form_of(accept) is None


@given(st.text(alphabet='a/*;=q01.,"\\ \t', max_size=60))
def test_any_header_is_read(accept: str) -> None:
    for each in media_ranges(accept):
        assert 0 <= each.weight <= 1
        assert each.kind != "*" or each.subtype == "*"
    chosen(accept, FORMS)


@pytest.mark.parametrize(
    "piece", ['"', '\\"', '"\\"', ";", "; ", "a/b;", ",", 'a/b;c="', "a/b ", 'a/b;c="\\', "a/a,"]
)
@pytest.mark.timeout(20)
def test_a_hostile_header_takes_no_time(piece: str) -> None:
    """Longer than a request's head may be. Read in quadratic time it takes minutes."""
    accept = piece * (70_000 // len(piece))
    assert chosen(accept, FORMS) is None
    assert chosen(f"a/b;c={accept}", FORMS) is None
