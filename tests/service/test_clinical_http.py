"""Results in the form that `Accept` asks for, over HTTP."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from clinical_cases import CASES, CLASSES, NUMBER, predicted
from house import House, open_house
from httpx import Response
from problem_checks import assert_problem

JSON, FHIR, DICOM = "application/json", "application/fhir+json", "application/dicom"
R4, R5 = f"{FHIR}; fhirVersion=4.0", f"{FHIR}; fhirVersion=5.0"
FORMS = (JSON, R4, R5, DICOM)
PATIENT = "Jones^Mary"


@dataclass(frozen=True)
class Clinic:
    """A service with a scan, and predictions of it, by their names in `CASES`."""

    house: House
    volume_id: str
    results: dict[str, str]

    def get(self, accept: str, case: str = "number", **headers: str) -> Response:
        return self.house.http.get(self.results[case], headers={"Accept": accept, **headers})


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, nifti: bytes) -> Iterator[Clinic]:
    with open_house(tmp_path_factory.mktemp("clinic")) as house:
        accepted = house.http.post("/v1/volumes", content=nifti, params={"name": PATIENT}).json()
        house.work(accepted["job"]["id"])
        volume_id = accepted["volume"]["id"]
        addresses = {
            name: predicted(house, volume_id, result, patient=PATIENT) for name, result in CASES.items()
        }
        yield Clinic(house, volume_id, addresses)


def submitted(clinic: Clinic) -> str:
    """A job of a kind that predicts nothing."""
    body = {"kind": "embed", "volume_id": clinic.volume_id}
    job_id: str = clinic.house.http.post("/v1/jobs", json=body).json()["id"]
    return job_id


@pytest.mark.parametrize("accept", [None, "*/*", "", JSON])
def test_json_comes_first(clinic: Clinic, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = clinic.house.http.get(clinic.results["number"], headers=headers)
    assert answer.json() == NUMBER
    assert answer.headers["content-type"] == JSON
    assert "content-disposition" not in answer.headers


@pytest.mark.parametrize("case", CASES)
def test_each_form_says_what_it_is(clinic: Clinic, case: str) -> None:
    tags = set()
    for form in FORMS:
        answer = clinic.get(form, case)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == form
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["cache-control"] == "private, no-cache"
        tags.add(answer.headers["etag"])
        assert answer.headers["etag"].startswith('"')
        assert clinic.get(form, case).content == answer.content
    assert len(tags) == len(FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_who_has_it_is_not_sent_it_again(clinic: Clinic, form: str) -> None:
    tag = clinic.get(form).headers["etag"]
    again = clinic.get(form, **{"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert (again.headers["etag"], again.headers["vary"]) == (tag, "Accept")
    for other in set(FORMS) - {form}:
        assert clinic.get(other, **{"If-None-Match": tag}).status_code == 200


def test_all_forms_give_one_answer(clinic: Clinic) -> None:
    values = [clinic.get(JSON).json()["value"]]
    for form in (R4, R5):
        values.append(clinic.get(form).json()["entry"][1]["resource"]["valueQuantity"]["value"])
    answer = clinic.get(DICOM)
    (group,) = hd.sr.srread(io.BytesIO(answer.content)).content.get_image_measurement_groups()
    values.append(group.get_measurements()[0].value)
    assert values == [NUMBER["value"]] * 4
    job_id = clinic.results["number"].split("/")[3]
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}.dcm"'
    assert pydicom.dcmread(io.BytesIO(answer.content)).StudyInstanceUID in clinic.get(R4).text


def test_a_client_may_weigh_its_wishes(clinic: Clinic) -> None:
    assert clinic.get(f"{DICOM}; q=0.2, {FHIR}; q=0.9, */*; q=0.1").headers["content-type"] == R4
    lines = [("Accept", "text/html"), ("Accept", f"{R5}; q=0.3")]
    answer = clinic.house.http.request("GET", clinic.results["number"], headers=lines)
    assert answer.headers["content-type"] == R5


@pytest.mark.parametrize(
    "accept", ["text/html", f"{FHIR}; fhirVersion=3.0", f"{JSON}; q=0", "application/fhir+xml", "nonsense"]
)
def test_what_there_is_not_is_not_acceptable(clinic: Clinic, accept: str) -> None:
    answer = clinic.get(accept)
    problem = assert_problem(answer, 406, "not-acceptable")
    assert answer.headers["vary"] == "Accept"
    for form in FORMS:
        assert form in problem["detail"]
    assert [error["pointer"] for error in problem["errors"]] == ["#Accept"]


@pytest.mark.parametrize("accept", [R4, R5, DICOM])
def test_a_job_that_predicts_nothing_has_json_alone(clinic: Clinic, accept: str) -> None:
    job_id = submitted(clinic)
    clinic.house.finish(job_id, {"ranks": [1, 2]})
    address = f"/v1/jobs/{job_id}/result"
    problem = assert_problem(
        clinic.house.http.get(address, headers={"Accept": accept}), 406, "not-acceptable"
    )
    assert "of the kind embed, not predict" in problem["detail"]
    either = clinic.house.http.get(address, headers={"Accept": f"{accept}, {JSON}; q=0.1"})
    assert either.json() == {"ranks": [1, 2]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"value": "61"}, "value"),
        ({"model_digest": None}, "model_digest"),
        ({"intervals": [{}]}, "intervals.0"),
    ],
)
def test_a_prediction_of_another_release_has_json_alone(
    clinic: Clinic, changed: dict[str, Any], told: str
) -> None:
    result = {**NUMBER, **changed}
    address = predicted(clinic.house, clinic.volume_id, result)
    for accept in (FHIR, DICOM):
        answer = clinic.house.http.get(address, headers={"Accept": accept})
        problem = assert_problem(answer, 406, "not-acceptable")
        assert f"another release: {told}" in problem["detail"]
    assert clinic.house.http.get(address).json() == result


def test_without_highdicom_there_is_no_dicom(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    problem = assert_problem(clinic.get(DICOM), 406, "not-acceptable")
    assert "tomotrain[clinical]" in problem["detail"]
    assert clinic.get(f"{DICOM}, */*; q=0.1").headers["content-type"] == JSON
    assert clinic.get(FHIR).headers["content-type"] == R4


@pytest.mark.parametrize("accept", [JSON, FHIR, DICOM, "text/html"])
def test_what_has_no_result_has_none_in_any_form(clinic: Clinic, accept: str) -> None:
    job_id = submitted(clinic)
    address = f"/v1/jobs/{job_id}/result"
    headers = {"Accept": accept}
    assert_problem(clinic.house.http.get(address, headers=headers), 409, "job-not-finished")
    job = clinic.house.catalogue.claim(job_id, "worker", 60)
    assert job is not None
    error = {"code": "non-finite", "detail": "an answer is not finite", "retryable": False}
    clinic.house.catalogue.fail(job_id, job.attempt, error)
    assert_problem(clinic.house.http.get(address, headers=headers), 409, "job-failed")
    assert_problem(clinic.house.http.get("/v1/jobs/job_0/result", headers=headers), 404, "job-not-found")


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_told_of_the_patient(clinic: Clinic, case: str) -> None:
    for form in FORMS:
        content = clinic.get(form, case).content
        assert b"Jones" not in content
        assert b"Mary" not in content
    assert "Jones" in clinic.house.http.get(f"/v1/volumes/{clinic.volume_id}").text


def test_a_scan_that_is_deleted_leaves_its_reports(house: House, nifti: bytes) -> None:
    volume_id = house.ready(nifti)
    address = predicted(house, volume_id, CLASSES)
    before = house.http.get(address, headers={"Accept": DICOM})
    assert "Image Library" in str(pydicom.dcmread(io.BytesIO(before.content)))
    house.catalogue.delete_volume(volume_id)
    for form in FORMS:
        assert house.http.get(address, headers={"Accept": form}).status_code == 200
    after = pydicom.dcmread(io.BytesIO(house.http.get(address, headers={"Accept": DICOM}).content))
    assert "Image Library" not in str(after)
    assert after.SOPInstanceUID != pydicom.dcmread(io.BytesIO(before.content)).SOPInstanceUID


def test_a_scan_that_dicom_cannot_place_is_not_referred_to(house: House, tmp_path: Path) -> None:
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), sheared), tmp_path / "scan.nii")
    address = predicted(house, house.ready((tmp_path / "scan.nii").read_bytes()), NUMBER)
    answer = house.http.get(address, headers={"Accept": DICOM})
    assert hd.sr.srread(io.BytesIO(answer.content)).get_evidence() == []
    assert b"Image Library" not in answer.content


def test_the_contract_names_the_forms(clinic: Clinic) -> None:
    paths = clinic.house.http.get("/openapi.json").json()["paths"]
    content = paths["/v1/jobs/{job_id}/result"]["get"]["responses"]["200"]["content"]
    assert set(content) == {JSON, FHIR, DICOM}
