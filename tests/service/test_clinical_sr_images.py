"""The images that a structured report refers to: the scan's planes as they are exported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from clinical_cases import AFFINE, CT_HEADER, NUMBER, QUANTILES, report_with, scan_in
from clinical_documents import items, named, read, written

from service.clinical import fhir, structured_report
from storage.exports.dicom import DicomSeries
from storage.ingest import ingest
from storage.volume import Volume
from tests.storage.scans import ArrayScan


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return scan_in(tmp_path_factory.mktemp("ct") / "scan", CT_HEADER)


def exported(volume: Volume) -> list[tuple[str, str, str, str]]:
    """Study, series, instance and class of every plane, as its own file says."""
    planes = [pydicom.dcmread(io.BytesIO(content)) for _, content in DicomSeries(volume).instances(4)]
    return [(p.StudyInstanceUID, p.SeriesInstanceUID, p.SOPInstanceUID, p.SOPClassUID) for p in planes]


def numbers(report: pydicom.Dataset) -> dict[str, float]:
    """What is said of the planes' geometry."""
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(report)
        if item.ValueType == "NUM" and item.RelationshipType == "HAS ACQ CONTEXT"
    }


def test_they_are_the_planes_of_the_export(ct: Volume) -> None:
    report, planes = read(NUMBER, ct), exported(ct)
    assert len(planes) == 4
    assert report.get_evidence() == planes
    sources = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in named(report, "Source")]
    assert sources == [instance for _, _, instance, _ in planes]
    assert {study for study, *_ in planes} == {report.StudyInstanceUID}
    bundle = json.loads(fhir.document(report_with(NUMBER, ct.stored), fhir.R4))
    (study,) = bundle["entry"][0]["resource"]["imagingStudy"]
    assert study["identifier"]["value"] == f"urn:oid:{report.StudyInstanceUID}"


def test_of_many_planes_there_is_evidence_alone(monkeypatch: pytest.MonkeyPatch, ct: Volume) -> None:
    monkeypatch.setattr(structured_report, "MOST_LISTED", 3)
    report = read(NUMBER, ct)
    assert report.get_evidence() == exported(ct)
    assert named(report, "Image Library") == []


def test_they_are_those_of_every_frame(tmp_path: Path) -> None:
    voxels = np.arange(3 * 2 * 8 * 8, dtype=np.int16).reshape(3, 2, 8, 8)
    scan = ArrayScan(voxels, axis="t", affine=np.array(AFFINE))
    volume = Volume.open(tmp_path / "scan", ingest(scan, tmp_path / "scan").digest)
    assert read(NUMBER, volume).get_evidence() == exported(volume)
    assert len(exported(volume)) == 6


def test_the_study_is_the_one_that_replaced_the_senders(tmp_path: Path) -> None:
    kept = {**CT_HEADER, "StudyInstanceUID": "2.25.123", "FrameOfReferenceUID": "2.25.456"}
    report = read(NUMBER, scan_in(tmp_path / "scan", kept))
    assert report.StudyInstanceUID == "2.25.123"
    assert {study for study, *_ in report.get_evidence()} == {"2.25.123"}
    assert [item.UID for item in named(report, "Frame of Reference UID")] == ["2.25.456"]


def test_a_placed_cross_section_is_described_as_dicom_places_it(ct: Volume) -> None:
    """RAS+ of the catalogue, LPS of DICOM; positions differ from plane to plane, and are not of the group."""
    expected = {
        "Pixel Data Rows": 16,
        "Pixel Data Columns": 20,
        "Horizontal Pixel Spacing": 0.7,
        "Vertical Pixel Spacing": 0.8,
        "Slice Thickness": 1.5,
        "Spacing between slices": 1.25,
        "Image Orientation (Patient) Row X": 1,
        "Image Orientation (Patient) Row Y": 0,
        "Image Orientation (Patient) Row Z": 0,
        "Image Orientation (Patient) Column X": 0,
        "Image Orientation (Patient) Column Y": 1,
        "Image Orientation (Patient) Column Z": 0,
    }
    assert numbers(read(NUMBER, ct)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("header", "modality", "procedure", "described"),
    [
        (CT_HEADER, "Computed Tomography", "Computed tomography", 12),
        ({"Modality": "MR"}, "Magnetic Resonance", "Magnetic resonance imaging", 12),
        ({"Modality": "PT"}, "Positron Emission Tomography", "Positron emission tomography", 12),
        ({"Modality": "US"}, "Other", "Imaging", 2),
        ({"Modality": "DX"}, "Other", "Imaging", 2),
        ({}, "Other", "Imaging", 2),
    ],
)
def test_they_are_described_as_far_as_they_are_known(
    tmp_path: Path, header: dict[str, Any], modality: str, procedure: str, described: int
) -> None:
    report = read(NUMBER, scan_in(tmp_path / "scan", header))
    (coded,) = named(report, "Modality")
    assert coded.ConceptCodeSequence[0].CodeMeaning.casefold() == modality.casefold()
    (reported,) = named(report, "Procedure reported")
    assert reported.ConceptCodeSequence[0].CodeMeaning == procedure
    assert len(numbers(report)) == described


def test_a_scan_without_a_place_is_not_placed(tmp_path: Path) -> None:
    report = read(NUMBER, scan_in(tmp_path / "scan", CT_HEADER, affine=None))
    assert set(numbers(report)) == {"Pixel Data Rows", "Pixel Data Columns"}
    assert len(report.get_evidence()) == 4


def test_of_a_scan_that_is_gone_there_are_none() -> None:
    report = read(NUMBER, None)
    assert report.get_evidence() == []
    assert named(report, "Image Library") == []


def test_uids_follow_from_what_they_name(tmp_path: Path, ct: Volume) -> None:
    again = scan_in(tmp_path / "scan", CT_HEADER, AFFINE)
    assert written(NUMBER, ct) == written(NUMBER, again)
    first, second, gone = read(NUMBER, ct), read(QUANTILES, ct), read(NUMBER, None)
    assert first.get_evidence() == second.get_evidence()
    documents = {report.SOPInstanceUID for report in (first, gone)}
    assert len(documents) == 2, "another document is another instance"
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    for uid in (*documents, first.SeriesInstanceUID, gone.StudyInstanceUID):
        assert pydicom.uid.UID(uid).is_valid
        assert uid.startswith("2.25.")
