"""Predictions as DICOM structured reports, read by pydicom and highdicom, and held against the IOD."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import highdicom as hd
import pydicom
import pytest
from clinical_cases import (
    CASES,
    CLASSES,
    CT,
    HOSTILE,
    HOSTILE_NAME,
    JOB,
    MODEL,
    MODEL_DIGEST,
    NOTICE,
    NUMBER,
    QUANTILES,
    WITHHELD,
    report_with,
)
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map
from highdicom.sr import utils
from pydicom.sr.codedict import codes

from service.clinical.prediction import printable
from service.clinical.structured_report import document
from storage.grid import VoxelGrid
from storage.records import StoredVolume

EVERY = pytest.mark.parametrize("result", [*CASES.values(), HOSTILE], ids=[*CASES, "hostile"])


def read(result: dict[str, Any], stored: StoredVolume | None = CT) -> hd.sr.ComprehensiveSR:
    """The document as highdicom reads it from a file."""
    found = hd.sr.srread(io.BytesIO(document(report_with(result, stored))))
    assert isinstance(found, hd.sr.ComprehensiveSR)
    return found


def group(result: dict[str, Any]) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    (found,) = read(result).content.get_image_measurement_groups()
    assert isinstance(found, hd.sr.MeasurementsAndQualitativeEvaluations)
    return found


def measured(result: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Numbers and units by the meaning of their names."""
    found = group(result).get_measurements()
    numbers = {each.name.meaning: (each.value, each.unit.value) for each in found}
    assert len(numbers) == len(found)
    return numbers


def told(result: dict[str, Any]) -> list[str]:
    """Conclusion and comments."""
    root = read(result).content[0]
    (container,) = utils.find_content_items(root, name=hd.sr.CodedConcept("C0034375", "UMLS", "x"))
    assert container.ValueType == "CONTAINER"
    return [item.TextValue for item in container.ContentSequence]


def items(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """All content items below one."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


@EVERY
def test_the_iod_has_what_it_must_have(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Types 1 and 2 of the mandatory modules (PS3.3 A.35.3), by the tables of the standard in highdicom."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    dataset = pydicom.dcmread(io.BytesIO(document(report_with(result))))
    assert len(list(dataset.iterall())) > 300
    modules = {each["key"] for each in get_iod_module_map()["comprehensive-sr"] if each["usage"] == "M"}
    assert len(modules) == 7
    for module in modules - {"sr-document-content"}:
        for attribute in get_module_attribute_map()[module]:
            if attribute["type"] in "12" and not attribute["path"]:
                assert attribute["keyword"] in dataset, attribute
                assert attribute["type"] == "2" or dataset[attribute["keyword"]].VM, attribute
    assert "PixelData" not in dataset


@EVERY
def test_the_tree_is_one_of_tid_1500(result: dict[str, Any]) -> None:
    document_ = read(result)
    assert document_.SOPClassUID.name == "Comprehensive SR Storage"
    assert document_.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    names = [item.ConceptNameCodeSequence[0].CodeMeaning for item in document_.ContentSequence]
    expected = ["Procedure reported", "Image Library", "Imaging Measurements", "Qualitative Evaluations"]
    assert names[-4:] == expected
    assert names[0] == "Language of Content Item and Descendants"
    for item in items(document_):
        assert len(item.ConceptNameCodeSequence[0].CodeMeaning) <= 64
        assert "\\" not in item.ConceptNameCodeSequence[0].CodeMeaning
    assert told(result)[0].endswith(NOTICE)


def test_numbers_are_those_of_the_result() -> None:
    litres = "L"
    assert measured(QUANTILES) == {
        "vital capacity": (QUANTILES["value"], litres),
        "low end of the 80 % prediction interval": (QUANTILES["intervals"][0]["low"], litres),
        "high end of the 80 % prediction interval": (QUANTILES["intervals"][0]["high"], litres),
        "low end of the 90 % prediction interval": (QUANTILES["intervals"][1]["low"], litres),
        "high end of the 90 % prediction interval": (QUANTILES["intervals"][1]["high"], litres),
        "quantile at 0.2": (QUANTILES["quantiles"][0]["value"], litres),
        "quantile at 0.5": (QUANTILES["quantiles"][1]["value"], litres),
        "quantile at 0.8": (QUANTILES["quantiles"][2]["value"], litres),
        "percentile of distance among the training's scans": (QUANTILES["distance_percentile"], "%"),
    }
    assert "95 % interval unknown: the model learnt from too few patients" in told(QUANTILES)[0]


@pytest.mark.parametrize(
    "number", [61.300000000000004, -1 / 3, -0.0, 5e-324, 1e16, 123456789.12345679, -1e300]
)
def test_any_number_comes_to_the_last_bit(number: float) -> None:
    """As a double, beside the decimal string that is as near to it as 16 characters come."""
    dataset = pydicom.dcmread(io.BytesIO(document(report_with({**NUMBER, "value": number}))))
    (value,) = [
        item.MeasuredValueSequence[0]
        for item in items(dataset)
        if item.ConceptNameCodeSequence[0].CodeMeaning == "lung age"
    ]
    assert value.FloatingPointValue.hex() == number.hex()
    assert math.isclose(float(value.NumericValue), number, rel_tol=1e-8)


@pytest.mark.parametrize(
    ("unit", "code", "meaning"),
    [
        ("years", "a", "year"),
        ("points of a score", "{points_of_a_score}", "points of a score"),
        ("", "1", "no units"),
        ("{odd}", "1", "no units"),
        ("Größe", "1", "no units"),
    ],
)
def test_units_are_of_ucum(unit: str, code: str, meaning: str) -> None:
    (first, *_) = group({**NUMBER, "target_unit": unit}).get_measurements()
    assert (first.unit.value, first.unit.meaning, first.unit.scheme_designator) == (code, meaning, "UCUM")
    assert first.derivation == codes.DCM.Estimated


def test_classes_are_coded_and_have_probabilities() -> None:
    found = [(each.name.meaning, each.value.meaning) for each in group(CLASSES).get_qualitative_evaluations()]
    assert found == [
        ("stage", "early"),
        ("80 % prediction set", "early"),
        ("90 % prediction set", "early"),
        ("90 % prediction set", "late"),
        ("95 % prediction set", "none"),
        ("95 % prediction set", "early"),
        ("95 % prediction set", "late"),
    ]
    assert measured(CLASSES) == {
        f"probability of {each['name']}": (each["value"], "1") for each in CLASSES["probabilities"]
    }
    early = {each.value.value for each in group(CLASSES).get_qualitative_evaluations()[:3]}
    assert len(early) == 1, "one class, one code"


def test_an_answer_that_is_withheld_is_no_measurement() -> None:
    assert list(measured(WITHHELD)) == ["percentile of distance among the training's scans"]
    assert told(WITHHELD)[0].startswith("lung age: no answer")


def test_a_name_that_no_code_can_hold_stands_in_the_conclusion() -> None:
    (evaluation, *_) = group(HOSTILE).get_qualitative_evaluations()
    assert evaluation.value.meaning.endswith("…")
    assert evaluation.value.scheme_designator == "99TOMOTRAIN"
    assert printable(HOSTILE_NAME) in told(HOSTILE)[0]


def test_who_observed_is_a_program_with_a_model() -> None:
    contexts = read(NUMBER).content.get_observer_contexts(observer_type=codes.DCM.Device)
    (context,) = contexts
    device = context.observer_identifying_attributes
    assert (device.manufacturer_name, device.model_name) == ("Tomotrain", "cpic")
    assert device.serial_number == MODEL_DIGEST
    algorithm = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue
        for item in items(read(NUMBER))
        if item.ConceptNameCodeSequence[0].CodeMeaning in ("Algorithm Name", "Algorithm Version")
    }
    assert algorithm == {"Algorithm Name": "Tomotrain predict, regressor cpic", "Algorithm Version": "0.1.0"}
    parameters = [
        item.TextValue
        for item in items(read(NUMBER))
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Algorithm Parameters"
    ]
    expected = [f"model = {MODEL}", f"sha-256 of the model = {MODEL_DIGEST}", "covariate age = 61.5"]
    assert parameters == expected


def test_what_to_know_before_it_is_relied_on() -> None:
    comments = told(NUMBER)
    for warning in NUMBER["warnings"]:
        assert f"Warning ({warning['code']}): {warning['text']}" in comments
    assert f"Like the training's scans: {NUMBER['verdict']}" in comments


def test_nobody_has_verified_it() -> None:
    found = read(NUMBER)
    assert (found.CompletionFlag, found.VerificationFlag, found.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "VerifyingObserverSequence" not in found


def test_the_patient_is_nobody() -> None:
    found = read(NUMBER)
    names = "PatientName PatientID PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime"
    for keyword in names.split():
        assert not found[keyword].value
    assert found.PatientIdentityRemoved == "YES"


def test_a_scan_that_is_placed_is_described_as_dicom_places_it() -> None:
    """RAS+ of the catalogue, LPS of DICOM: x and y of this scan grow along the patient's."""
    described = {
        item.ConceptNameCodeSequence[0].CodeMeaning: float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(read(NUMBER))
        if item.ValueType == "NUM" and item.RelationshipType == "HAS ACQ CONTEXT"
    }
    expected = {
        "Pixel Data Rows": 16,
        "Pixel Data Columns": 20,
        "Horizontal Pixel Spacing": 0.7,
        "Vertical Pixel Spacing": 0.8,
        "Slice Thickness": 1.5,
        "Spacing between slices": 1.25,
        "Image Position (Patient) X": -10,
        "Image Position (Patient) Y": -20,
        "Image Position (Patient) Z": -30,
        "Image Orientation (Patient) Row X": 1,
        "Image Orientation (Patient) Row Y": 0,
        "Image Orientation (Patient) Row Z": 0,
        "Image Orientation (Patient) Column X": 0,
        "Image Orientation (Patient) Column Y": 1,
        "Image Orientation (Patient) Column Z": 0,
    }
    assert described == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metadata", "modality", "procedure", "described"),
    [
        ({"Modality": "CT", "SliceThickness": 1.5}, "Computed Tomography", "Computed tomography", 15),
        ({"Modality": "MR"}, "Magnetic Resonance", "Magnetic resonance imaging", 2),
        ({"Modality": "PT", "SliceThickness": [1.5]}, None, "Positron emission tomography", 2),
        ({"Modality": "US", "SliceThickness": 1.5}, None, "Imaging", 2),
        ({"Modality": "Mr. Jones, 61"}, None, "Imaging", 2),
        ({}, None, "Imaging", 2),
    ],
)
def test_scans_are_described_as_far_as_they_are_known(
    metadata: dict[str, Any], modality: str | None, procedure: str, described: int
) -> None:
    found = read(NUMBER, replace(CT, metadata=metadata))
    placed = [item for item in items(found) if item.get("RelationshipType") == "HAS ACQ CONTEXT"]
    assert len([item for item in placed if item.ValueType == "NUM"]) == described
    (coded,) = [item.ConceptCodeSequence[0].CodeMeaning for item in placed if item.ValueType == "CODE"]
    assert modality is None or coded.casefold() == modality.casefold()
    (reported,) = [
        item.ConceptCodeSequence[0]
        for item in found.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Procedure reported"
    ]
    assert reported.CodeMeaning == procedure
    assert "Jones" not in str(found)


def test_a_scan_without_a_place_and_one_that_is_gone() -> None:
    placeless = replace(CT, grid=VoxelGrid((12, 16, 20)))
    numbers = [item for item in items(read(NUMBER, placeless)) if item.ValueType == "NUM"]
    assert len([item for item in numbers if item.RelationshipType == "HAS ACQ CONTEXT"]) == 2
    gone = read(NUMBER, None)
    names = [item.ConceptNameCodeSequence[0].CodeMeaning for item in gone.ContentSequence]
    assert "Image Library" not in names
    assert len(gone.get_evidence()) == 1


def test_uids_follow_from_the_job_and_the_scan() -> None:
    first, second = read(NUMBER), read(QUANTILES)
    assert first.get_evidence() == second.get_evidence()
    ((study, series, instance, _),) = first.get_evidence()
    uids = [study, series, instance, first.SeriesInstanceUID, first.SOPInstanceUID]
    assert len(set(uids)) == 5
    for uid in uids:
        assert pydicom.uid.UID(uid).is_valid
        assert uid.startswith("2.25.")
    assert first.StudyInstanceUID == study
    assert document(report_with(NUMBER)) == document(report_with(NUMBER))


def test_the_study_is_the_one_that_replaced_the_senders() -> None:
    kept = {"StudyInstanceUID": "2.25.123", "FrameOfReferenceUID": "2.25.456"}
    found = read(NUMBER, replace(CT, metadata={**CT.metadata, **kept}))
    assert found.StudyInstanceUID == "2.25.123"
    assert found.get_evidence()[0][0] == "2.25.123"
    frames = {item.UID for item in items(found) if item.ValueType == "UIDREF"}
    assert "2.25.456" in frames
    foreign = read(NUMBER, replace(CT, metadata={"StudyInstanceUID": "1.2.840.99.7"}))
    assert foreign.StudyInstanceUID == read(NUMBER).StudyInstanceUID


def test_times_are_those_of_the_job() -> None:
    found = read(NUMBER)
    assert (found.ContentDate, found.ContentTime) == ("20261122", "064640.125000")
    assert (found.InstanceCreationDate, found.InstanceCreationTime) == ("20261122", "064640.125000")
    assert found.TimezoneOffsetFromUTC == "+0000"
    assert found.ContributingEquipmentSequence[0].ContributionDateTime == "20261122064640.125000"
    tracking = [item for item in items(found) if item.ValueType == "TEXT" and item.TextValue == JOB]
    assert len(tracking) == 1
