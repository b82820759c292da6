"""The tus protocol 1.0: what stands in its text, by raw requests; exact offsets after every kind of cut."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from house import House, open_house, wait_until
from problem_checks import assert_problem

from storage.access import Access
from storage.arriving import Arrival, GrowingFile
from storage.errors import CatalogueUnavailable
from storage.upload_errors import UploadBusy

SPOKEN = {"Tus-Resumable": "1.0.0"}
BYTES = {**SPOKEN, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service that these tests share: each has uploads of its own."""
    with open_house(tmp_path_factory.mktemp("house")) as opened:
        yield opened


def metadata(**told: str) -> str:
    return ",".join(f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in told.items())


def begin(house: House, length: int, **told: str) -> str:
    """The address of a new upload."""
    headers = {**SPOKEN, "Upload-Length": str(length)}
    if told:
        headers["Upload-Metadata"] = metadata(**told)
    answer = house.http.post("/v1/tus", headers=headers)
    assert answer.status_code == 201, answer.text
    assert "upload-expires" in answer.headers
    return answer.headers["location"]


def send(house: House, address: str, at: int, body: bytes, **headers: str) -> httpx.Response:
    return house.http.patch(address, content=body, headers={**BYTES, "Upload-Offset": str(at), **headers})


def offset(house: House, address: str) -> int:
    answer = house.http.head(address, headers=SPOKEN)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def session_of(address: str) -> str:
    return address.replace("/v1/tus/", "/v1/uploads/")


def arriving(house: House) -> list[Path]:
    folder = house.root / "arriving"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_file_in_three_pieces_becomes_a_volume(house: House, nifti: bytes) -> None:
    digest = hashlib.sha256(nifti).hexdigest()
    address = begin(house, len(nifti), label="knee", filename="DOE^JOHN.nii", sha256=digest)
    third = len(nifti) // 3
    for at in (0, third):
        answer = send(house, address, at, nifti[at : at + third])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(at + third))
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert offset(house, address) == at + third
        assert house.http.get(session_of(address)).json()["received"] == at + third
    last = send(house, address, 2 * third, nifti[2 * third :])
    assert (last.status_code, last.headers["upload-offset"]) == (204, str(len(nifti)))
    volume = house.http.get(f"/v1/volumes/{last.headers['x-volume-id']}").json()
    assert (volume["name"], volume["source_sha256"]) == ("knee", digest)
    assert volume["ingest_job"] == last.headers["x-job-id"]
    wait_until(lambda: house.queue.rung.get(volume["ingest_job"]) == 1)
    house.work(volume["ingest_job"])
    assert house.http.get(f"/v1/volumes/{volume['id']}").json()["state"] == "ready"
    view = house.http.get(session_of(address)).json()
    assert (view["state"], view["volume_id"], view["received"]) == ("complete", volume["id"], len(nifti))
    assert offset(house, address) == len(nifti)
    assert not arrival_of(house, address).folder.exists()


def test_what_is_offered(house: House) -> None:
    answer = house.http.options("/v1/tus")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(1 << 20)
    offered = set(answer.headers["tus-extension"].split(","))
    assert offered == {"creation", "creation-with-upload", "checksum", "expiration", "termination"}
    assert {"sha1", "sha256"} <= set(answer.headers["tus-checksum-algorithm"].split(","))


def test_a_name_that_may_be_a_patients_is_not_kept(house: House, nifti: bytes) -> None:
    address = begin(house, len(nifti), filename="DOE^JOHN.nii.gz")
    told = house.http.head(address, headers=SPOKEN).headers["upload-metadata"]
    assert told == metadata(filename="scan.nii.gz")
    assert house.http.get(session_of(address)).json()["name"] == "scan.nii.gz"


def test_the_first_bytes_may_come_with_the_creation(house: House, nifti: bytes) -> None:
    headers = {**BYTES, "Upload-Length": str(len(nifti))}
    first = house.http.post("/v1/tus", content=nifti[:1000], headers=headers)
    assert (first.status_code, first.headers["upload-offset"]) == (201, "1000")
    assert send(house, first.headers["location"], 1000, nifti[1000:]).headers["x-volume-id"]
    whole = house.http.post("/v1/tus", content=nifti, headers=headers)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(nifti)))
    assert whole.headers["x-volume-id"].startswith("vol_")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Upload-Length": "5"}, 412, "tus-version"),
        ({"Upload-Length": "5", "Tus-Resumable": "0.2.2"}, 412, "tus-version"),
        (SPOKEN, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "-5"}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "\u0665".encode()}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "9" * 30}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "0"}, 400, "empty-upload"),
        ({**SPOKEN, "Upload-Length": str((1 << 20) + 1)}, 413, "scan-too-large"),
        ({**SPOKEN, "Upload-Defer-Length": "1"}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "5", "Upload-Concat": "partial"}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "5", "Upload-Metadata": "filename !"}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "5", "Upload-Metadata": "a YQ==,a YQ=="}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "5", "Upload-Metadata": "a YQ==," * 2000}, 400, "bad-request"),
        ({**SPOKEN, "Upload-Length": "5", "Upload-Metadata": metadata(sha256="x")}, 400, "invalid-digest"),
    ],
)
def test_a_wrong_creation(house: House, headers: dict[str, Any], status: int, code: str) -> None:
    before = arriving(house)
    answer = house.http.post("/v1/tus", headers=headers)
    assert_problem(answer, status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert (code == "tus-version") == (answer.headers.get("tus-version") == "1.0.0")
    assert arriving(house) == before


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"Tus-Resumable": "1.0.1"}, 412, "tus-version"),
        ({"Content-Type": "application/octet-stream"}, 415, "unsupported-media-type"),
        ({"Upload-Offset": "one"}, 400, "bad-request"),
        ({"Upload-Offset": "4"}, 409, "wrong-offset"),
        ({"Upload-Offset": "0"}, 409, "wrong-offset"),
        ({"Upload-Checksum": "crc32 AAAA"}, 400, "bad-request"),
        ({"Upload-Checksum": "sha1 !"}, 400, "bad-request"),
        ({"Upload-Checksum": "sha1 AAAA"}, 400, "invalid-digest"),
        ({"Upload-Checksum": f"sha1 {base64.b64encode(bytes(20)).decode()}"}, 460, "checksum-mismatch"),
        ({"Upload-Checksum": f"sha256 {base64.b64encode(bytes(32)).decode()}"}, 460, "checksum-mismatch"),
    ],
)
def test_a_wrong_append_changes_nothing(
    house: House, nifti: bytes, changed: dict[str, str], status: int, code: str
) -> None:
    address = begin(house, len(nifti))
    assert send(house, address, 0, nifti[:3]).status_code == 204
    headers = {**BYTES, "Upload-Offset": "3", **changed}
    answer = house.http.patch(address, content=nifti[3:9], headers=headers)
    body = assert_problem(answer, status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    if code == "wrong-offset":
        assert body["offset"] == 3
    assert offset(house, address) == 3
    assert send(house, address, 3, nifti[3:]).headers["x-volume-id"]


def test_more_than_was_announced_is_refused(house: House, nifti: bytes) -> None:
    address = begin(house, 10)
    assert_problem(send(house, address, 0, nifti[:11]), 413, "scan-too-large")
    assert offset(house, address) == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha-256", "sha512", "md5"])
def test_a_right_checksum(house: House, nifti: bytes, algorithm: str) -> None:
    address = begin(house, len(nifti))
    digest = base64.b64encode(hashlib.new(algorithm.replace("-", ""), nifti).digest()).decode()
    answer = send(house, address, 0, nifti, **{"Upload-Checksum": f"{algorithm} {digest}"})
    assert answer.headers["x-volume-id"]


def test_a_hundred_flipped_bits_are_found(house: House) -> None:
    body = os.urandom(4096)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    address = begin(house, 1 << 16)
    for trial in range(100):
        place = trial * 41
        damaged = bytearray(body)
        damaged[place] ^= 1 << trial % 8
        answer = send(house, address, 0, bytes(damaged), **{"Upload-Checksum": f"sha256 {digest}"})
        assert answer.status_code == 460
    assert offset(house, address) == 0


@pytest.mark.parametrize(
    ("body", "told", "status", "code"),
    [
        (b"no scan at all " * 40, {}, 415, "unsupported-scan"),
        (b"PK\x03\x04 but no archive", {}, 422, "invalid-scan"),
        (b"any", {"sha256": "0" * 64}, 400, "digest-mismatch"),
    ],
)
def test_what_is_no_scan_ends_the_upload(
    house: House, body: bytes, told: dict[str, str], status: int, code: str
) -> None:
    before = house.http.get("/v1/volumes").json()["volumes"]
    address = begin(house, len(body), **told)
    assert_problem(send(house, address, 0, body), status, code)
    assert house.http.head(address, headers=SPOKEN).status_code == 410
    gone = assert_problem(house.http.get(session_of(address)), 410, "upload-gone")
    assert (gone["state"], gone["cause"]["code"]) == ("aborted", code)
    assert_problem(send(house, address, 0, body), 410, "upload-gone")
    assert not arrival_of(house, address).folder.exists()
    assert house.http.get("/v1/volumes").json()["volumes"] == before


def test_termination(house: House, nifti: bytes) -> None:
    address = begin(house, len(nifti))
    send(house, address, 0, nifti[:100])
    assert house.http.delete(address, headers=SPOKEN).status_code == 204
    assert not arrival_of(house, address).folder.exists()
    assert house.http.head(address, headers=SPOKEN).status_code == 410
    assert_problem(house.http.delete(address, headers=SPOKEN), 410, "upload-gone")
    whole = begin(house, len(nifti))
    send(house, whole, 0, nifti)
    assert_problem(house.http.delete(whole, headers=SPOKEN), 409, "upload-finished")
    assert_problem(send(house, whole, len(nifti), b""), 409, "upload-finished")


def test_another_project_sees_nothing(tmp_path: Path, nifti: bytes) -> None:
    with open_house(tmp_path, authentication=True) as house:
        keys = _two_projects(house)
        house.http.headers["Authorization"] = f"Bearer {keys[0]}"
        address = begin(house, len(nifti))
        assert offset(house, address) == 0
        house.http.headers["Authorization"] = f"Bearer {keys[1]}"
        assert house.http.head(address, headers=SPOKEN).status_code == 404
        assert_problem(send(house, address, 0, nifti), 404, "upload-not-found")
        assert_problem(house.http.delete(address, headers=SPOKEN), 404, "upload-not-found")
        assert_problem(house.http.get(session_of(address)), 404, "upload-not-found")
        del house.http.headers["Authorization"]
        assert_problem(send(house, address, 0, nifti), 401, "no-credentials")
        assert house.http.options("/v1/tus").status_code == 204


def _two_projects(house: House) -> list[str]:
    access = Access(house.catalogue.database)
    access.put_project("other")
    return [access.make_key("k", project_id=project).secret for project in ("default", "other")]


# Cuts


def cut_off(house: House, address: str, at: int, body: bytes, announced: int, **headers: str) -> None:
    """Send a part of a body, and close the connection."""
    head = "".join(
        f"{name}: {value}\r\n"
        for name, value in {
            "Host": "a",
            **BYTES,
            "Upload-Offset": str(at),
            "Content-Length": str(announced),
            **headers,
        }.items()
    )
    assert house.http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", house.http.base_url.port), 10) as connection:
        connection.sendall(f"PATCH {address} HTTP/1.1\r\n{head}\r\n".encode() + body)
        time.sleep(0.02)


def until_free(house: House, address: str) -> int:
    """The offset, once nobody writes any more."""
    wait_until(lambda: not is_held(house, address))
    return offset(house, address)


def held(house: House, address: str) -> GrowingFile:
    """The upload's file, as its writer holds it."""
    return GrowingFile(arrival_of(house, address), "upl", house.root / "uploads" / "upl")


def arrival_of(house: House, address: str) -> Arrival:
    return Arrival(house.root, address.rpartition("/")[2])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_what_came_before_a_cut_is_kept_exactly(house: House, nifti: bytes, share: float) -> None:
    address, sent = begin(house, len(nifti)), int(len(nifti) * share)
    cut_off(house, address, 0, nifti[:sent], len(nifti))
    kept = until_free(house, address)
    assert kept <= sent
    data = arrival_of(house, address).data
    assert data.read_bytes()[:kept] == nifti[:kept]
    last = send(house, address, kept, nifti[kept:])
    assert (
        house.http.get(f"/v1/volumes/{last.headers['x-volume-id']}").json()["source_sha256"]
        == hashlib.sha256(nifti).hexdigest()
    )


def test_a_body_under_a_checksum_counts_whole_or_not_at_all(house: House, nifti: bytes) -> None:
    address = begin(house, len(nifti))
    digest = base64.b64encode(hashlib.sha256(nifti).digest()).decode()
    cut_off(house, address, 0, nifti[:5000], len(nifti), **{"Upload-Checksum": f"sha256 {digest}"})
    assert until_free(house, address) == 0


def test_a_sender_who_lost_the_last_answer_gets_it_by_sending_the_end_again(
    house: House, nifti: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = begin(house, len(nifti))
    broken: list[int] = []

    def unavailable(*_: object, **__: object) -> None:
        broken.append(1)
        raise CatalogueUnavailable

    with monkeypatch.context() as patched:
        patched.setattr("storage.upload_sessions.insert_volume", unavailable)
        assert_problem(send(house, address, 0, nifti), 503, "catalogue-unavailable")
    assert broken == [1]
    kept = offset(house, address)
    assert kept == len(nifti) - 1
    assert send(house, address, kept, nifti[kept:]).headers["x-volume-id"]
    assert not arrival_of(house, address).folder.exists()


def test_one_writer_at_a_time(house: House, nifti: bytes) -> None:
    address = begin(house, len(nifti))
    holding = held(house, address)
    try:
        body = assert_problem(send(house, address, 0, nifti), 423, "upload-busy")
        assert body["retryable"]
    finally:
        holding.close()
    assert send(house, address, 0, nifti).headers["x-volume-id"]


def test_of_writers_that_race_one_wins_and_no_byte_is_wrong(house: House, nifti: bytes) -> None:
    address = begin(house, len(nifti))
    answers: list[int] = []

    def race() -> None:
        answers.append(send(house, address, 0, nifti).status_code)

    threads = [Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(204) == 1
    assert set(answers) <= {204, 409, 423}
    volume = house.http.get("/v1/volumes").json()["volumes"][0]
    assert volume["id"].removeprefix("vol_") == address.rpartition("_")[2]
    assert volume["source_sha256"] == hashlib.sha256(nifti).hexdigest()
    assert (house.root / "uploads" / volume["id"]).read_bytes() == nifti


def test_a_silent_connection_makes_way_for_who_comes_back(
    house: House, nifti: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = begin(house, len(nifti))
    head = "".join(f"{name}: {value}\r\n" for name, value in {**BYTES, "Upload-Offset": "0"}.items())
    start = f"PATCH {address} HTTP/1.1\r\nHost: a\r\n{head}Content-Length: {len(nifti)}\r\n\r\n"
    assert house.http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", house.http.base_url.port), 10) as silent:
        silent.sendall(start.encode() + nifti[:1000])
        wait_until(lambda: is_held(house, address))
        assert_problem(send(house, address, 0, nifti), 423, "upload-busy")
        monkeypatch.setattr("service.routes.tus.SILENT_S", 0.0)
        body = assert_problem(send(house, address, 0, nifti), 409, "wrong-offset")
        assert body["offset"] == offset(house, address) == 1000
        assert silent.recv(20).startswith(b"HTTP/1.1 408 ")
    assert send(house, address, 1000, nifti[1000:]).headers["x-volume-id"]


def is_held(house: House, address: str) -> bool:
    try:
        held(house, address).close()
    except UploadBusy:
        return True
    return False


def test_nothing_for_too_long_ends_the_request_and_keeps_what_came(tmp_path: Path, nifti: bytes) -> None:
    with open_house(tmp_path, upload_idle_s=0.2) as house:
        address = begin(house, len(nifti))
        assert _stalled(house, "PATCH", address, nifti[:1000], len(nifti)).startswith(b"HTTP/1.1 408 ")
        assert offset(house, address) == 1000
        assert send(house, address, 1000, nifti[1000:]).headers["x-volume-id"]
        assert _stalled(house, "POST", "/v1/volumes", nifti[:1000], len(nifti)).startswith(b"HTTP/1.1 408 ")
        assert len(list((house.root / "uploads").iterdir())) == 1


def _stalled(house: House, method: str, address: str, body: bytes, announced: int) -> bytes:
    """The answer to a body that stops halfway; the connection must be closed with it."""
    assert house.http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", house.http.base_url.port), 10) as connection:
        head = (
            f"{method} {address} HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {announced}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))
