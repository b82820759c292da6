"""STOW-RS: instances in one request or one by one, whole or damaged, and bodies that break off."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from house import wait_until
from planted import PIXELS, UIDS, instance, multi_frame, part10, series
from pydicom.dataset import Dataset
from radiology import TYPE, Department, body, open_department

from service.dicomweb.json_model import COERCED, DUPLICATE, MISMATCH, NO_ROOM, NOT_UNDERSTOOD, WRONG_CLASS
from storage.access import Access, Scope

STUDY, SERIES = UIDS["StudyInstanceUID"], UIDS["SeriesInstanceUID"]


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    with open_department(tmp_path) as opened:
        yield opened


def failures(answer: Any) -> list[int]:
    return [item.FailureReason for item in Dataset.from_json(answer.json()).get("FailedSOPSequence", [])]


def files(department: Department) -> list[Path]:
    """Below the data root, but for the catalogue's and the secret."""
    root = department.house.root
    return [
        path
        for place in ("uploads", "arriving", "volumes")
        for path in (root / place).rglob("*")
        if path.is_file()
    ]


def test_a_series_in_one_request_for_each_instance_is_one_volume(department: Department) -> None:
    for content in series().values():
        assert department.stow(content).status_code == 202
    (job,) = department.closed()
    assert department.collections.close_quiet() == []
    assert job.volume_id is not None
    listed = department.house.catalogue.volumes()
    assert [volume.id for volume in listed] == [job.volume_id]
    assert len(list((department.house.root / "uploads" / job.volume_id).iterdir())) == len(PIXELS)


def test_instances_that_come_at_the_same_time_are_one_volume(tmp_path: Path) -> None:
    contents = [
        part10(instance(place % 6, f"1.9.{place}", ImagePositionPatient=[0, 0, place])) for place in range(40)
    ]
    with open_department(tmp_path, stow_quiet_s=60) as department, ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(department.stow, contents))
        assert {answer.status_code for answer in answers} == {202}
        (collection,) = (tmp_path / "arriving").iterdir()
        assert len(list((collection / "objects").iterdir())) == len(contents)


def test_a_multi_frame_instance_is_read_plane_by_plane(department: Department) -> None:
    assert department.stow(multi_frame()).status_code == 202
    department.read()
    planes = department.client.retrieve_series(STUDY, SERIES)
    assert np.array_equal([plane.pixel_array for plane in planes], PIXELS)
    assert failures(department.stow(multi_frame())) == []
    assert files_arriving(department) == []


def test_two_series_in_one_request_are_two_volumes(department: Department) -> None:
    others = [part10(instance(place, f"1.9.{place}", SeriesInstanceUID="1.9")) for place in range(3)]
    answer = department.stow(*series().values(), *others)
    assert answer.status_code == 202
    assert len(department.read(2)) == 2
    assert len(department.client.search_for_series(STUDY)) == 2


def test_a_collection_outlasts_a_restart(tmp_path: Path) -> None:
    contents = list(series().values())
    with open_department(tmp_path) as first:
        assert first.stow(*contents[:4]).status_code == 202
    with open_department(tmp_path) as second:
        second.stow(*contents[4:])
        second.read()
        assert len(second.client.retrieve_series(STUDY, SERIES)) == len(PIXELS)


def test_a_quiet_series_is_swept_into_a_volume_whose_job_is_rung(tmp_path: Path) -> None:
    with open_department(tmp_path, sweep_every_s=0.02) as department:
        department.stow(*series().values())
        wait_until(lambda: len(department.house.queue.rung) == 1)


def test_a_collection_whose_files_are_gone_keeps_no_other_from_becoming_a_volume(
    department: Department,
) -> None:
    department.stow(part10(instance(0, "1.9.1", SeriesInstanceUID="1.9")))
    (lost,) = (department.house.root / "arriving").iterdir()
    shutil.rmtree(lost)
    department.stow(*series().values())
    (job,) = department.closed()
    assert department.collections.close_quiet() == []
    department.stow(part10(instance(0, "1.9.1", SeriesInstanceUID="1.9")))
    (again,) = department.closed()
    assert again.volume_id != job.volume_id


def test_an_instance_that_is_sent_again_is_there_once(department: Department) -> None:
    contents = list(series().values())
    for _ in range(2):
        answer = department.stow(*contents, contents[0])
        assert (answer.status_code, failures(answer)) == (202, [])
    (job,) = department.closed()
    assert department.stow(*contents).status_code == 202, "while it is read"
    assert department.collections.close_quiet() == []
    assert job.volume_id is not None


def test_an_instance_of_a_volume_that_is_sent_again_makes_no_other(department: Department) -> None:
    contents = list(series().values())
    department.stow(*contents)
    department.read()
    answer = department.stow(contents[2])
    assert (answer.status_code, failures(answer)) == (202, [])
    assert files_arriving(department) == []
    assert len(department.house.catalogue.volumes()) == 1


def files_arriving(department: Department) -> list[Path]:
    return [path for path in (department.house.root / "arriving").rglob("*") if path.is_file()]


def test_instances_that_come_late_join_their_series(department: Department) -> None:
    contents = list(series().values())
    department.stow(*contents[:3])
    department.read()
    department.stow(*contents[3:])
    department.read()
    (found,) = department.client.search_for_series(STUDY)
    assert found["00201209"]["Value"] == [len(contents)]
    assert len(department.client.retrieve_series(STUDY, SERIES)) == len(contents)


def test_other_bytes_under_a_uid_that_is_there_are_refused(department: Department) -> None:
    department.stow(part10(instance(0)))
    changed = part10(instance(0, PixelData=PIXELS[1].tobytes()))
    again = department.stow(changed)
    assert (again.status_code, failures(again)) == (409, [DUPLICATE])
    both = department.stow(part10(instance(1)), part10(instance(1, PixelData=PIXELS[2].tobytes())))
    assert (both.status_code, failures(both)) == (202, [DUPLICATE])


def test_what_is_refused_has_its_reason_and_the_rest_is_stored(department: Department) -> None:
    document = instance(3, PixelData=None, Rows=None, Columns=None)
    foreign = part10(instance(4, StudyInstanceUID="1.2.3"))
    nameless = part10(instance(5, SeriesInstanceUID=""))
    answer = department.stow(
        part10(instance(0)), b"no DICOM at all", b"", part10(document), foreign, nameless, study=STUDY
    )
    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/dicom+json"
    assert failures(answer) == [NOT_UNDERSTOOD, NOT_UNDERSTOOD, WRONG_CLASS, MISMATCH, NOT_UNDERSTOOD]
    told = Dataset.from_json(answer.json())
    (stored,) = told.ReferencedSOPSequence
    assert stored.WarningReason == COERCED
    assert told.RetrieveURL.endswith(f"/dicomweb/studies/{department.new_uid(STUDY)}")
    assert told.FailedSOPSequence[3].ReferencedSOPInstanceUID == department.new_uid(
        instance(4).SOPInstanceUID
    )
    assert len(files(department)) == 1


def test_where_nothing_is_stored_the_answer_is_409(department: Department) -> None:
    answer = department.stow(b"no DICOM at all", part10(instance(0))[:400])
    assert (answer.status_code, failures(answer)) == (409, [NOT_UNDERSTOOD] * 2)
    assert files(department) == []


def test_parts_of_another_kind_are_not_understood(department: Department) -> None:
    content = body(b"{}", media_type="application/dicom+json")
    answer = department.http.post("/dicomweb/studies", content=content, headers={"Content-Type": TYPE})
    assert (answer.status_code, failures(answer)) == (409, [NOT_UNDERSTOOD])


@pytest.mark.parametrize("study", ["", f"/{STUDY}"])
@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"x", {"Content-Type": "application/dicom"}, 415, "unsupported-media-type"),
        (b"x", {"Content-Type": "multipart/related"}, 400, "bad-request"),
        (b"", {"Content-Type": TYPE}, 400, "bad-request"),
        (body(), {"Content-Type": TYPE}, 400, "bad-request"),
        (body(part10(instance(0)))[:-20], {"Content-Type": TYPE}, 400, "bad-request"),
        (body(b"x"), {"Content-Type": TYPE, "Accept": "application/dicom+xml"}, 406, "not-acceptable"),
    ],
)
def test_bodies_that_are_none(
    department: Department, study: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = department.http.post(f"/dicomweb/studies{study}", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert STUDY not in answer.text
    assert files(department) == []


def test_who_may_only_read_stores_nothing(department: Department) -> None:
    secret = department.key("radiology", Scope.VOLUMES_READ)
    answer = department.stow(part10(instance(0)), headers={"Authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "missing-scope")


def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    with open_department(tmp_path, max_upload_bytes=2000) as department:
        announced = department.stow(*series().values())
        assert (announced.status_code, announced.json()["code"]) == (413, "scan-too-large")
        pieces = iter([body(*series().values())])
        streamed = department.http.post("/dicomweb/studies", content=pieces, headers={"Content-Type": TYPE})
        assert (streamed.status_code, streamed.json()["code"]) == (413, "scan-too-large")
        assert files(department) == []


def test_a_full_quota(department: Department) -> None:
    access = Access(department.house.catalogue.database)
    access.put_project("radiology", max_bytes=1000)
    announced = department.stow(part10(instance(0)))
    assert (announced.status_code, announced.json()["code"]) == (429, "quota-exceeded")
    pieces = iter([body(part10(instance(0)))])
    streamed = department.http.post("/dicomweb/studies", content=pieces, headers={"Content-Type": TYPE})
    assert (streamed.status_code, failures(streamed)) == (409, [NO_ROOM])
    assert files(department) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with open_department(tmp_path, disk_kept_bytes=1 << 60) as department:
        answer = department.stow(part10(instance(0)))
        assert (answer.status_code, answer.json()["code"]) == (507, "storage-low")
        assert files(department) == []


def test_a_cut_connection_leaves_nothing(department: Department) -> None:
    """Not even of the instances that had come whole."""
    whole = body(*[part10(instance(0))] * 600)
    uploads = department.house.root / "uploads"
    url = department.http.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as line:
        line.sendall(
            f"POST /dicomweb/studies HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer "
            f"{department.secret}\r\nContent-Type: {TYPE}\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
        )
        line.sendall(whole[: len(whole) - 100])
        wait_until(lambda: len(files(department)) > 100)
    wait_until(lambda: not any(uploads.iterdir()))
    assert files(department) == []
    assert department.collections.close_quiet() == []


def test_projects_collect_apart(department: Department) -> None:
    secret = department.key("cardiology")
    content = list(series().values())
    department.stow(*content[:3])
    department.stow(*content, headers={"Authorization": f"Bearer {secret}"})
    first, second = department.closed(2)
    assert {first.project_id, second.project_id} == {"radiology", "cardiology"}
