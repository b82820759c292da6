"""DICOMweb by a client that others wrote: what it stores, it finds, and reads back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from planted import PIXELS, TOKENS, UIDS, found_in, series
from pydicom.dataset import Dataset
from radiology import Department, open_department

from storage.access import Scope

STUDY, SERIES = UIDS["StudyInstanceUID"], UIDS["SeriesInstanceUID"]
SOP = UIDS["MediaStorageSOPInstanceUID"]
MULTIPART = 'multipart/related; type="application/dicom"'


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    with open_department(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Department]:
    """A service that holds one series, for tests that change nothing."""
    with open_department(tmp_path_factory.mktemp("archive")) as opened:
        assert opened.stow(*series().values()).status_code == 202
        opened.read()
        yield opened


def datasets(files: list[bytes]) -> list[Dataset]:
    return [pydicom.dcmread(io.BytesIO(content)) for content in files]


def values(found: Dataset) -> np.ndarray:
    """Real values."""
    slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    return found.pixel_array * slope + intercept


def test_a_client_stores_a_series_finds_it_by_its_own_uids_and_reads_it_back(department: Department) -> None:
    client, sent = department.client, datasets(list(series().values()))
    answer = client.store_instances(sent)
    stored = answer.ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in stored] == [
        department.new_uid(each.SOPInstanceUID) for each in sent
    ]
    department.read()
    (study,) = client.search_for_studies(search_filters={"StudyInstanceUID": STUDY})
    assert study["0020000D"]["Value"] == [department.new_uid(STUDY)]
    assert study["00201208"]["Value"] == [len(sent)]
    (found,) = client.search_for_series(STUDY, search_filters={"Modality": "MR"})
    assert found["0020000E"]["Value"] == [department.new_uid(SERIES)]
    assert client.search_for_series(STUDY, search_filters={"Modality": "CT"}) == []
    assert len(client.search_for_instances(STUDY, SERIES)) == len(sent)
    received = client.retrieve_series(STUDY, SERIES)
    by_uid = {each.SOPInstanceUID: each for each in received}
    assert len(received) == len(sent)
    for each in sent:
        assert np.array_equal(values(by_uid[department.new_uid(each.SOPInstanceUID)]), each.pixel_array)


def test_every_level_is_retrieved_by_either_uid(archive: Department) -> None:
    client, new = archive.client, archive.new_uid
    assert len(client.retrieve_study(STUDY)) == len(client.retrieve_study(new(STUDY))) == len(PIXELS)
    (one,) = client.search_for_instances(STUDY, SERIES, search_filters={"SOPInstanceUID": f"{SOP}.2"})
    assert one["00080018"]["Value"] == [new(f"{SOP}.2")]
    assert one["0020000E"]["Value"] == [new(SERIES)]
    single = client.retrieve_instance(new(STUDY), SERIES, f"{SOP}.2")
    assert np.array_equal(values(single), PIXELS[2])
    (frame,) = client.retrieve_instance_frames(STUDY, SERIES, f"{SOP}.2", frame_numbers=[1])
    assert frame == single.PixelData


def test_metadata_are_those_of_the_files(archive: Department) -> None:
    client = archive.client
    headers = [Dataset.from_json(each) for each in client.retrieve_series_metadata(STUDY, SERIES)]
    files = client.retrieve_series(STUDY, SERIES)
    for header, file in zip(headers, files, strict=True):
        del file.PixelData
        assert {e.tag: e.value for e in header} == {e.tag: e.value for e in file}
    assert len(client.retrieve_study_metadata(STUDY)) == len(PIXELS)
    one = Dataset.from_json(client.retrieve_instance_metadata(STUDY, SERIES, f"{SOP}.3"))
    assert one.SOPInstanceUID == archive.new_uid(f"{SOP}.3")


def test_one_instance_comes_by_itself_where_that_is_asked_for(archive: Department) -> None:
    address = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOP}.1"
    answer = archive.http.get(address, headers={"Accept": "application/dicom"})
    assert answer.headers["content-type"] == "application/dicom"
    assert np.array_equal(values(datasets([answer.content])[0]), PIXELS[1])
    assert archive.http.get(address).headers["content-type"].startswith(MULTIPART)


def test_pages_of_a_search(archive: Department) -> None:
    pages = [archive.client.search_for_instances(STUDY, limit=4, offset=offset) for offset in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 2, 0]
    assert len({each["00080018"]["Value"][0] for page in pages for each in page}) == len(PIXELS)


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ("Modality=MR", 1),
        ("Modality=M*", 1),
        ("Modality=CT", 0),
        ("ModalitiesInStudy=MR", 1),
        ("ModalitiesInStudy=CT", 0),
        ("PatientID=QX-4711-07", 0),
        ("PatientID=*", 1),
        ("PatientName=", 1),
        (f"StudyInstanceUID={STUDY},1.2", 1),
        (f"SeriesInstanceUID={SERIES}", 1),
        (f"SeriesInstanceUID={STUDY}", 0),
        (f"00080060=MR&StudyInstanceUID={STUDY}&limit=1", 1),
        ("limit=0", 0),
        ("offset=1", 0),
    ],
)
@pytest.mark.parametrize("level", ["studies", "series"])
def test_searches(archive: Department, level: str, question: str, count: int) -> None:
    answer = archive.http.get(f"/dicomweb/{level}?{question}")
    assert answer.headers["content-type"] == "application/dicom+json"
    assert len(answer.json()) == count


def test_volumes_that_were_no_dicom_are_studies_too(department: Department, nifti: bytes) -> None:
    department.house.ready(nifti)
    (study,) = department.client.search_for_studies()
    found = department.client.retrieve_study(study["0020000D"]["Value"][0])
    assert len(found) == study["00201208"]["Value"][0]


def test_an_archive_that_is_older_than_its_index_is_searched_too(archive: Department) -> None:
    from sqlalchemy import delete

    from storage.dicom_series import SeriesIndex
    from storage.tables import dicom_series

    database = archive.house.catalogue.database
    with database.writing() as connection:
        connection.execute(delete(dicom_series))
    assert archive.client.search_for_studies() == []
    assert SeriesIndex(database).enter_missing() == 1
    assert SeriesIndex(database).enter_missing() == 0
    assert len(archive.client.search_for_studies()) == 1


def test_no_project_sees_anothers_studies(archive: Department) -> None:
    secret = archive.key("cardiology")
    assert archive.client_of(secret).search_for_studies() == []
    for path in addresses(STUDY, SERIES, f"{SOP}.1"):
        answer = archive.http.get(path, headers={"Authorization": f"Bearer {secret}"})
        if path.endswith(("/studies", "/series")):
            assert answer.json() == []
        else:
            assert answer.json()["code"] == "not-found", path
            assert answer.status_code == 404


def addresses(study: str, series_uid: str, sop: str) -> list[str]:
    """Of every operation that reads."""
    root = f"/dicomweb/studies/{study}"
    one = f"{root}/series/{series_uid}"
    return [
        "/dicomweb/studies", "/dicomweb/series", f"{root}/series", f"{root}/instances", f"{one}/instances",
        root, one, f"{one}/instances/{sop}", f"{one}/instances/{sop}/frames/1", f"{root}/metadata",
        f"{one}/metadata", f"{one}/instances/{sop}/metadata",
    ]  # fmt: skip


@pytest.mark.parametrize("path", addresses("1.2.x", "1.2", "1.2")[2:])
def test_no_uid(archive: Department, path: str) -> None:
    answer = archive.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert "1.2.x" not in answer.text


@pytest.mark.parametrize("path", addresses("1.2.3", "1.2.4", "1.2.5")[3:])
def test_no_such_study(archive: Department, path: str) -> None:
    answer = archive.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize("path", addresses(STUDY, SERIES, f"{SOP}.1"))
def test_another_form_than_there_is(archive: Department, path: str) -> None:
    answer = archive.http.get(path, headers={"Accept": 'multipart/related; type="application/dicom+xml"'})
    assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
    assert STUDY not in answer.text


@pytest.mark.parametrize("question", ["limit=x", "offset=-1", "StudyInstanceUID=abc", "Nonsense=1"])
@pytest.mark.parametrize("path", addresses(STUDY, SERIES, SOP)[:5])
def test_a_search_that_cannot_be_understood(archive: Department, path: str, question: str) -> None:
    answer = archive.http.get(f"{path}?{question}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("path", addresses(STUDY, SERIES, f"{SOP}.1"))
def test_who_may_not_read(archive: Department, path: str) -> None:
    secret = archive.key("radiology", Scope.JOBS_READ)
    answer = archive.http.get(path, headers={"Authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "missing-scope")
    assert archive.http.get(path, headers={"Authorization": ""}).status_code == 401


def test_frames_other_than_the_first(archive: Department) -> None:
    address = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOP}.1/frames"
    assert archive.http.get(f"{address}/2").json()["code"] == "not-found"
    assert archive.http.get(f"{address}/0").json()["code"] == "invalid-request"


def test_no_uid_of_the_senders_is_told_or_kept(department: Department) -> None:
    """Neither in answers, nor in the audit log, nor anywhere below the data root once a series is read."""
    answers = [department.stow(*series().values(), study=STUDY)]
    department.read()
    answers += [department.http.get(path) for path in addresses(STUDY, SERIES, f"{SOP}.1")]
    answers += [department.http.get(f"/dicomweb/studies/{STUDY}/nothing")]
    answers += [department.http.get(f"/dicomweb/studies/{STUDY}/series/1.2.3")]
    assert {answer.status_code for answer in answers} == {202, 200, 404}
    for answer in answers:
        assert found_in(answer.content) == set(), answer.request.url
    records = department.house.parts.audit.records(limit=100)
    assert any(department.new_uid(STUDY) in record.subject for record in records)
    assert not any(token in record.subject for record in records for token in TOKENS.values())
    (upload,) = (department.house.root / "uploads").iterdir()
    assert not [path for path in upload.iterdir() if STUDY in path.name]


@pytest.mark.parametrize("name", ["chest_ct_A0002_30x8mm.zip", "fmri_ge_4d_150.zip"])
def test_a_real_series(department: Department, shared_data: Path, name: str) -> None:
    path = shared_data / "dev" / "dicom" / name
    with zipfile.ZipFile(path) as archive:
        files = [archive.read(entry) for entry in archive.namelist() if not entry.endswith("/")]
    sent = datasets(files)
    client = department.client
    client.store_instances(sent)
    department.read()
    study, series_uid = sent[0].StudyInstanceUID, sent[0].SeriesInstanceUID
    by_uid = {each.SOPInstanceUID: each for each in client.retrieve_series(study, series_uid)}
    assert len(by_uid) == len(sent)
    for each in sent:
        found = by_uid[department.new_uid(each.SOPInstanceUID)]
        assert np.array_equal(values(found), values(each))
        assert np.allclose(found.ImagePositionPatient, each.ImagePositionPatient, atol=1e-3)
