"""Predictions as FHIR: parsed by `fhir.resources` (R4B and R5), and held against rules that it lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any
from xml.etree import ElementTree

import pytest
from clinical_cases import (
    CASES,
    CLASSES,
    CT,
    ENDED_AT,
    HOSTILE,
    JOB,
    MODEL_DIGEST,
    NOTICE,
    NUMBER,
    QUANTILES,
    WITHHELD,
    report_with,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from service.clinical.fhir import R4, R5, Release, document

BUNDLES = {R4: "fhir.resources.R4B.bundle", R5: "fhir.resources.bundle"}
RELEASES = pytest.mark.parametrize("release", [R4, R5], ids=["R4", "R5"])
EVERY = pytest.mark.parametrize("result", [*CASES.values(), HOSTILE], ids=[*CASES, "hostile"])
OURS = "urn:oid:2.25.136645714975001725842204218832723336398"
_RESOURCE = "id meta implicitRules language text contained extension modifierExtension identifier status"
R4_ELEMENTS = {
    "Bundle": "id meta implicitRules language identifier type timestamp total link entry signature",
    "DiagnosticReport": f"{_RESOURCE} basedOn category code subject encounter effectiveDateTime "
    "_effectiveDateTime effectivePeriod issued performer resultsInterpreter specimen result imagingStudy "
    "media conclusion conclusionCode presentedForm",
    "Observation": f"{_RESOURCE} basedOn partOf category code subject focus encounter effectiveDateTime "
    "_effectiveDateTime issued performer valueQuantity valueCodeableConcept valueString valueRange "
    "dataAbsentReason interpretation note bodySite method specimen device referenceRange hasMember "
    "derivedFrom component",
    "Device": f"{_RESOURCE} definition udiCarrier statusReason distinctIdentifier manufacturer "
    "manufactureDate expirationDate lotNumber serialNumber deviceName modelNumber partNumber type "
    "specialization version property patient owner contact location url note safety parent",
}
"""Those of R4 (4.0.1), which `fhir.resources` has no more; of choices those that are used here."""


def told(result: dict[str, Any], release: Release = R4) -> dict[str, Any]:
    """The resources of a bundle, by their types."""
    bundle = json.loads(document(report_with(result), release))
    return {"Bundle": bundle, **{e["resource"]["resourceType"]: e["resource"] for e in bundle["entry"]}}


def component(resources: dict[str, Any], code: str) -> list[dict[str, Any]]:
    components = resources["Observation"]["component"]
    return [each for each in components if each["code"]["coding"][0]["code"] == code]


@RELEASES
@EVERY
def test_the_library_of_the_release_parses_it(result: dict[str, Any], release: Release) -> None:
    text = document(report_with(result), release)
    parsed = import_module(BUNDLES[release]).Bundle.model_validate_json(text)
    kinds = [entry.resource.__class__.__name__ for entry in parsed.entry]
    assert kinds == ["DiagnosticReport", "Observation", "Device"]
    codes = list(bound_codes(parsed))
    assert len(codes) > 5
    assert [(place, value) for place, value, known in codes if value not in known] == []
    written = json.loads(parsed.model_dump_json())
    assert {place for place, _ in leaves(written)} == {place for place, _ in leaves(json.loads(text))}


def bound_codes(element: BaseModel) -> Iterator[tuple[str, str, list[str]]]:
    """Every value of an element whose codes the release enumerates; the library does not check them."""
    for name, field in type(element).model_fields.items():
        value = getattr(element, name)
        extra = field.json_schema_extra
        if value is not None and isinstance(extra, dict) and "enum_values" in extra:
            yield f"{type(element).__name__}.{name}", value, extra["enum_values"]  # type: ignore[misc]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                yield from bound_codes(each)


@pytest.mark.parametrize(("made", "read"), [(R4, R5), (R5, R4)], ids=["R4 as R5", "R5 as R4"])
def test_one_release_is_not_the_other(made: Release, read: Release) -> None:
    with pytest.raises(ValidationError):
        import_module(BUNDLES[read]).Bundle.model_validate_json(document(report_with(NUMBER), made))


@EVERY
def test_r4_has_no_elements_of_later_releases(result: dict[str, Any]) -> None:
    for kind, resource in told(result).items():
        assert resource.keys() - {"resourceType"} <= set(R4_ELEMENTS[kind].split())
    device = told(result)["Device"]
    assert device["deviceName"][0].keys() == {"name", "type"}
    assert isinstance(device["type"], dict)


def test_r5_has_the_elements_of_r5() -> None:
    resources = told(NUMBER, R5)
    assert resources["DiagnosticReport"]["study"] == resources["Observation"]["derivedFrom"]
    assert resources["DiagnosticReport"]["note"] == [{"text": NOTICE}]
    assert resources["Device"]["name"][0]["value"] == "Tomotrain model of lung age"
    assert isinstance(resources["Device"]["type"], list)


@RELEASES
@EVERY
def test_the_invariants_that_the_library_does_not_check(result: dict[str, Any], release: Release) -> None:
    resources = told(result, release)
    bundle = resources.pop("Bundle")
    urls = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(urls)) == 3, "bdl-7"
    for entry in bundle["entry"]:
        assert entry["fullUrl"] == f"urn:uuid:{entry['resource']['id']}"
    for place, value in leaves(bundle):
        assert value not in (None, "", [], {}), f"ele-1 at {place}"
        assert not (isinstance(value, str) and re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", value)), place
        if place.endswith("/reference"):
            assert value in urls, place
    for each in [resources["Observation"], *resources["Observation"]["component"]]:
        assert any(name.startswith("value") for name in each) != ("dataAbsentReason" in each), "obs-6"
        for quantity in [each.get("valueQuantity", {}), *each.get("valueRange", {}).values()]:
            assert "code" not in quantity or "system" in quantity, "qty-3"
        span = each.get("valueRange")
        assert span is None or span["low"]["value"] <= span["high"]["value"], "rng-2"
    for resource in resources.values():
        root = ElementTree.fromstring(resource["text"]["div"])
        assert root.tag == "{http://www.w3.org/1999/xhtml}div", "txt-1"
        assert {child.tag for child in root} == {"{http://www.w3.org/1999/xhtml}p"}, "txt-1"
        assert "".join(root.itertext()).strip(), "txt-2"
        assert NOTICE in "".join(root.itertext())


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every element without children, with its path."""
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    if not children:
        yield place, value
    for name, child in children:
        yield from leaves(child, f"{place}/{name}")


@RELEASES
def test_numbers_are_those_of_the_result(release: Release) -> None:
    resources = told(QUANTILES, release)
    observation = resources["Observation"]
    litres = {"unit": "L", "system": "http://unitsofmeasure.org", "code": "L"}
    assert observation["valueQuantity"] == {"value": QUANTILES["value"], **litres}
    for interval in QUANTILES["intervals"][:2]:
        (found,) = component(resources, f"interval-{interval['level']:g}")
        ends = {"low": {"value": interval["low"], **litres}, "high": {"value": interval["high"], **litres}}
        assert found["valueRange"] == ends
    (unknown,) = component(resources, "interval-0.95")
    assert unknown["dataAbsentReason"]["coding"][0]["code"] == "unknown"
    assert "too few patients" in unknown["dataAbsentReason"]["text"]
    for quantile in QUANTILES["quantiles"]:
        (found,) = component(resources, f"quantile-{quantile['level']:g}")
        assert found["valueQuantity"] == {"value": quantile["value"], **litres}
    (percentile,) = component(resources, "distance-percentile")
    assert percentile["valueQuantity"]["value"] == QUANTILES["distance_percentile"]
    assert percentile["valueQuantity"]["code"] == "%"
    (verdict,) = component(resources, "like-training")
    assert verdict["valueString"] == QUANTILES["verdict"]
    (covariate,) = component(resources, "covariate")
    assert (covariate["code"]["text"], covariate["valueQuantity"]) == ("given: age", {"value": 61.5})
    assert covariate["code"]["coding"][0]["system"] == OURS


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_comes_to_the_last_bit(number: float) -> None:
    """As JSON of FHIR, whose decimals have no form but this (R4 and R5, `decimal`)."""
    text = document(report_with({**NUMBER, "value": number}), R4).decode()
    found = json.loads(text)["entry"][1]["resource"]["valueQuantity"]["value"]
    assert found.hex() == number.hex()
    decimal = re.search(r'"valueQuantity": \{"value": ([^,}]+)', text)
    assert decimal is not None
    assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", decimal[1])


@RELEASES
def test_classes_come_with_probabilities_and_sets(release: Release) -> None:
    resources = told(CLASSES, release)
    assert resources["Observation"]["valueCodeableConcept"] == {"text": "early"}
    found = [
        (each["code"]["text"], each["valueQuantity"]["value"]) for each in component(resources, "probability")
    ]
    assert found == [(f"probability of {each['name']}", each["value"]) for each in CLASSES["probabilities"]]
    for level, names in ((0.8, ["early"]), (0.9, ["early", "late"]), (0.95, ["none", "early", "late"])):
        members = component(resources, f"set-{level:g}")
        assert [each["valueCodeableConcept"]["text"] for each in members] == names


@RELEASES
def test_an_answer_that_is_withheld_is_absent(release: Release) -> None:
    observation = told(WITHHELD, release)["Observation"]
    assert observation["dataAbsentReason"]["coding"][0]["code"] == "unknown"
    assert "no answer" in told(WITHHELD, release)["DiagnosticReport"]["conclusion"]


@RELEASES
@EVERY
def test_nobody_has_verified_it(result: dict[str, Any], release: Release) -> None:
    """`preliminary` of a report is "verified early results"; `partial` is what is unverified."""
    resources = told(result, release)
    assert resources["DiagnosticReport"]["status"] == "partial"
    assert resources["Observation"]["status"] == "preliminary"
    assert "performer" not in resources["DiagnosticReport"]
    assert resources["DiagnosticReport"]["conclusion"].endswith(NOTICE)
    assert resources["Observation"]["note"][0] == {"text": NOTICE}


@RELEASES
def test_what_to_know_before_it_is_relied_on(release: Release) -> None:
    notes = [note["text"] for note in told(NUMBER, release)["Observation"]["note"]]
    for warning in NUMBER["warnings"]:
        assert f"Warning ({warning['code']}): {warning['text']}" in notes
    assert any(NUMBER["guarantee"] in note for note in notes)
    assert any('"upper_bound": 0.125' in note for note in notes)


@RELEASES
def test_which_model_said_it_of_which_scan(release: Release) -> None:
    resources = told(NUMBER, release)
    device = resources["Device"]
    assert MODEL_DIGEST in [each["value"] for each in device["identifier"]]
    assert {"type": {"text": "tomotrain"}, "value": "0.1.0"} in device["version"]
    (scan,) = resources["Observation"]["derivedFrom"]
    assert scan["identifier"]["system"] == "urn:dicom:uid"
    assert re.fullmatch(r"urn:oid:2\.25\.[1-9][0-9]{0,38}", scan["identifier"]["value"])
    assert NUMBER["volume_digest"] in scan["display"]
    assert scan["display"].startswith("CT scan vol_")


def test_a_modality_that_is_no_code_is_not_told() -> None:
    named = replace(CT, metadata={"Modality": "Mr. Jones, 61"})
    assert b"Jones" not in document(report_with(NUMBER, named), R4)


@RELEASES
def test_the_patient_is_somebody(release: Release) -> None:
    resources = told(NUMBER, release)
    for kind in ("DiagnosticReport", "Observation"):
        subject = resources[kind]["subject"]
        assert "reference" not in subject
        assert "identifier" not in subject
        assert subject["extension"][0]["valueCode"] == "masked"


def test_ids_and_times_follow_from_the_job() -> None:
    resources = told(NUMBER)
    assert resources["DiagnosticReport"]["id"] == JOB.removeprefix("job_")
    assert resources["DiagnosticReport"]["issued"] == "2026-11-22T06:46:40.125+00:00"
    assert report_with(NUMBER).issued.timestamp() == ENDED_AT
    assert told(NUMBER) == told(NUMBER)
    assert told(NUMBER)["Device"]["id"] == told(QUANTILES)["Device"]["id"]
