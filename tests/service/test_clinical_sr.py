"""Predictions as DICOM structured reports, read by pydicom and highdicom, and held against the IOD."""

from __future__ import annotations

import io
import math
from typing import Any

import highdicom as hd
import pydicom
import pytest
from clinical_cases import (
    CASES,
    CLASSES,
    CT_HEADER,
    HOSTILE,
    HOSTILE_NAME,
    JOB,
    MODEL,
    MODEL_DIGEST,
    NOTICE,
    NUMBER,
    QUANTILES,
    WITHHELD,
    scan_in,
)
from clinical_documents import items, named, read, written
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map
from highdicom.sr import utils
from pydicom.sr.codedict import codes

from service.clinical.prediction import printable
from storage.volume import Volume

EVERY = pytest.mark.parametrize("result", [*CASES.values(), HOSTILE], ids=[*CASES, "hostile"])


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return scan_in(tmp_path_factory.mktemp("ct") / "scan", CT_HEADER)


def group(result: dict[str, Any], volume: Volume) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    (found,) = read(result, volume).content.get_image_measurement_groups()
    assert isinstance(found, hd.sr.MeasurementsAndQualitativeEvaluations)
    return found


def measured(result: dict[str, Any], volume: Volume) -> dict[str, tuple[float, str]]:
    """Numbers and units by the meaning of their names."""
    found = group(result, volume).get_measurements()
    numbers = {each.name.meaning: (each.value, each.unit.value) for each in found}
    assert len(numbers) == len(found)
    return numbers


def told(result: dict[str, Any], volume: Volume) -> list[str]:
    """Conclusion and comments."""
    root = read(result, volume).content[0]
    (container,) = utils.find_content_items(root, name=hd.sr.CodedConcept("C0034375", "UMLS", "x"))
    assert container.ValueType == "CONTAINER"
    return [item.TextValue for item in container.ContentSequence]


@EVERY
def test_the_iod_has_what_it_must_have(
    ct: Volume, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types 1 and 2 of the mandatory modules (PS3.3 A.35.3), by the tables of the standard in highdicom."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    dataset = pydicom.dcmread(io.BytesIO(written(result, ct)))
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
def test_the_tree_is_one_of_tid_1500(ct: Volume, result: dict[str, Any]) -> None:
    report = read(result, ct)
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    names = [item.ConceptNameCodeSequence[0].CodeMeaning for item in report.ContentSequence]
    expected = ["Procedure reported", "Image Library", "Imaging Measurements", "Qualitative Evaluations"]
    assert names[-4:] == expected
    assert names[0] == "Language of Content Item and Descendants"
    for item in items(report):
        assert len(item.ConceptNameCodeSequence[0].CodeMeaning) <= 64
        assert "\\" not in item.ConceptNameCodeSequence[0].CodeMeaning
    assert told(result, ct)[0].endswith(NOTICE)


def test_numbers_are_those_of_the_result(ct: Volume) -> None:
    litres = "L"
    assert measured(QUANTILES, ct) == {
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
    assert "95 % interval unknown: the model learnt from too few patients" in told(QUANTILES, ct)[0]


@pytest.mark.parametrize(
    "number", [61.300000000000004, -1 / 3, -0.0, 5e-324, 1e16, 123456789.12345679, -1e300]
)
def test_any_number_comes_to_the_last_bit(ct: Volume, number: float) -> None:
    """As a double, beside the decimal string that is as near to it as 16 characters come."""
    dataset = pydicom.dcmread(io.BytesIO(written({**NUMBER, "value": number}, ct)))
    (value,) = [item.MeasuredValueSequence[0] for item in named(dataset, "lung age")]
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
def test_units_are_of_ucum(ct: Volume, unit: str, code: str, meaning: str) -> None:
    (first, *_) = group({**NUMBER, "target_unit": unit}, ct).get_measurements()
    assert (first.unit.value, first.unit.meaning, first.unit.scheme_designator) == (code, meaning, "UCUM")
    assert first.derivation == codes.DCM.Estimated


def test_classes_are_coded_and_have_probabilities(ct: Volume) -> None:
    found = [
        (each.name.meaning, each.value.meaning) for each in group(CLASSES, ct).get_qualitative_evaluations()
    ]
    assert found == [
        ("stage", "early"),
        ("80 % prediction set", "early"),
        ("90 % prediction set", "early"),
        ("90 % prediction set", "late"),
        ("95 % prediction set", "none"),
        ("95 % prediction set", "early"),
        ("95 % prediction set", "late"),
    ]
    assert measured(CLASSES, ct) == {
        f"probability of {each['name']}": (each["value"], "1") for each in CLASSES["probabilities"]
    }
    early = {each.value.value for each in group(CLASSES, ct).get_qualitative_evaluations()[:3]}
    assert len(early) == 1, "one class, one code"


def test_an_answer_that_is_withheld_is_no_measurement(ct: Volume) -> None:
    assert list(measured(WITHHELD, ct)) == ["percentile of distance among the training's scans"]
    assert told(WITHHELD, ct)[0].startswith("lung age: no answer")


def test_a_name_that_no_code_can_hold_stands_in_the_conclusion(ct: Volume) -> None:
    (evaluation, *_) = group(HOSTILE, ct).get_qualitative_evaluations()
    assert evaluation.value.meaning.endswith("…")
    assert evaluation.value.scheme_designator == "99TOMOTRAIN"
    assert printable(HOSTILE_NAME) in told(HOSTILE, ct)[0]


def test_who_observed_is_a_program_with_a_model(ct: Volume) -> None:
    contexts = read(NUMBER, ct).content.get_observer_contexts(observer_type=codes.DCM.Device)
    (context,) = contexts
    device = context.observer_identifying_attributes
    assert (device.manufacturer_name, device.model_name) == ("Tomotrain", "cpic")
    assert device.serial_number == MODEL_DIGEST
    report = read(NUMBER, ct)
    (name,), (version,) = named(report, "Algorithm Name"), named(report, "Algorithm Version")
    assert (name.TextValue, version.TextValue) == ("Tomotrain predict, regressor cpic", "0.1.0")
    parameters = [item.TextValue for item in named(report, "Algorithm Parameters")]
    expected = [f"model = {MODEL}", f"sha-256 of the model = {MODEL_DIGEST}", "covariate age = 61.5"]
    assert parameters == expected


def test_what_to_know_before_it_is_relied_on(ct: Volume) -> None:
    comments = told(NUMBER, ct)
    for warning in NUMBER["warnings"]:
        assert f"Warning ({warning['code']}): {warning['text']}" in comments
    assert f"Like the training's scans: {NUMBER['verdict']}" in comments


def test_nobody_has_verified_it(ct: Volume) -> None:
    found = read(NUMBER, ct)
    assert (found.CompletionFlag, found.VerificationFlag, found.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "VerifyingObserverSequence" not in found


def test_the_patient_is_nobody(ct: Volume) -> None:
    found = read(NUMBER, ct)
    names = "PatientName PatientID PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime"
    for keyword in names.split():
        assert not found[keyword].value
    assert found.PatientIdentityRemoved == "YES"


def test_times_are_those_of_the_job(ct: Volume) -> None:
    found = read(NUMBER, ct)
    assert (found.ContentDate, found.ContentTime) == ("20261122", "064640.125000")
    assert (found.InstanceCreationDate, found.InstanceCreationTime) == ("20261122", "064640.125000")
    assert found.TimezoneOffsetFromUTC == "+0000"
    assert found.ContributingEquipmentSequence[0].ContributionDateTime == "20261122064640.125000"
    tracking = [item for item in items(found) if item.ValueType == "TEXT" and item.TextValue == JOB]
    assert len(tracking) == 1
