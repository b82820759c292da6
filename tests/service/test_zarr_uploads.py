"""A Zarr object by object: digests, what is missing, what is the same again, and `complete`."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr
from house import House, open_house, wait_until
from problem_checks import assert_problem
from sqlalchemy import update

from storage.access import Access
from storage.clock import now
from storage.errors import CatalogueUnavailable
from storage.sent_objects import SentObject, digest_of
from storage.tables import uploads
from storage.tidy import tidy
from storage.upload_sessions import UploadSessions

Objects = dict[str, bytes]
ENTRY = {"size": 1, "sha256": "0" * 64}


def digest(body: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service that these tests share: each has uploads of its own."""
    with open_house(tmp_path_factory.mktemp("house")) as opened:
        yield opened


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """A Zarr v3 array of 21 objects, by key."""
    folder = tmp_path_factory.mktemp("zarr") / "scan.zarr"
    array = zarr.create_array(
        folder, shape=(8, 40, 40), chunks=(8, 8, 10), dtype="int16", dimension_names=("z", "y", "x")
    )
    array[:] = np.arange(1, 1 + 8 * 40 * 40, dtype=np.int16).reshape(8, 40, 40)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest_of(objects: Objects) -> dict[str, dict[str, Any]]:
    return {
        key: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()} for key, body in objects.items()
    }


def begin(house: House, **wanted: Any) -> str:
    answer = house.http.post("/v1/uploads", json={"kind": "zarr", **wanted})
    assert answer.status_code == 201, answer.text
    location: str = answer.headers["location"]
    assert answer.json()["links"]["self"] == location
    return location


def put(house: House, address: str, key: str, body: bytes) -> httpx.Response:
    return house.http.put(f"{address}/objects/{key}", content=body, headers=digest(body))


def folder_of(house: House, address: str) -> Path:
    return house.root / "arriving" / address.rpartition("/")[2]


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["manifest before", "manifest after", "digest"])
def test_objects_in_any_order_become_a_volume(house: House, objects: Objects, way: str) -> None:
    manifest = manifest_of(objects)
    address = begin(house, name="knee", **({"manifest": manifest} if way == "manifest before" else {}))
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda item: put(house, address, *item), sorted(objects.items(), reverse=True))
    assert {answer.status_code for answer in answers} == {201}
    sent = {key: SentObject(**entry) for key, entry in manifest.items()}
    body = {
        "manifest before": None,
        "manifest after": {"manifest": manifest},
        "digest": {"digest": digest_of(sent)},
    }[way]
    answer = house.http.post(f"{address}/complete", json=body)
    assert answer.status_code == 202, answer.text
    volume, job = answer.json()["volume"], answer.json()["job"]
    assert (volume["name"], volume["source_sha256"]) == ("knee", digest_of(sent))
    assert volume["source_bytes"] == sum(map(len, objects.values()))
    assert answer.headers["location"] == f"/v1/volumes/{volume['id']}"
    wait_until(lambda: house.queue.rung.get(job["id"]) == 1)
    house.work(job["id"])
    ready = house.http.get(f"/v1/volumes/{volume['id']}").json()
    assert (ready["state"], ready["shape"]) == ("ready", [8, 40, 40])
    assert ready["statistics"]["maximum"] == 8 * 40 * 40
    view = house.http.get(address).json()
    assert (view["state"], view["volume_id"], view["objects"]) == ("complete", volume["id"], len(objects))
    assert not folder_of(house, address).exists()
    assert_problem(put(house, address, "c/0/0/0", b"x"), 409, "upload-finished")
    assert_problem(house.http.post(f"{address}/complete"), 409, "upload-finished")


def test_what_is_missing_is_told_and_sending_it_is_enough(house: House, objects: Objects) -> None:
    address = begin(house, manifest=manifest_of(objects))
    absent = sorted(objects)[3:7]
    for key, body in objects.items():
        if key not in absent:
            put(house, address, key, body)
    view = house.http.get(address).json()
    assert (view["missing_count"], view["missing"]) == (4, absent)
    assert view["objects"] == len(objects) - 4
    problem = assert_problem(house.http.post(f"{address}/complete"), 409, "upload-incomplete")
    assert (problem["missing_count"], problem["missing"]) == (4, absent)
    for key in absent:
        put(house, address, key, objects[key])
    assert house.http.get(address).json()["missing"] == []
    assert house.http.post(f"{address}/complete").status_code == 202


def test_other_objects_than_the_manifest_names_are_told(house: House, objects: Objects) -> None:
    address = begin(house)
    for key, body in objects.items():
        put(house, address, key, body)
    manifest = manifest_of(objects)
    removed = manifest.pop("c/0/0/0")
    manifest["c/0/0/1"] = {**manifest["c/0/0/1"], "sha256": removed["sha256"]}
    answer = house.http.post(f"{address}/complete", json={"manifest": manifest})
    problem = assert_problem(answer, 409, "upload-incomplete")
    assert (problem["unexpected"], problem["different"]) == (["c/0/0/0"], ["c/0/0/1"])
    answer = house.http.post(f"{address}/complete", json={"digest": "0" * 64})
    assert_problem(answer, 409, "upload-incomplete")
    assert_problem(house.http.post(f"{address}/complete"), 422, "invalid-request")


def test_the_same_again_does_no_harm_and_another_is_refused(house: House, objects: Objects) -> None:
    address, body = begin(house), objects["c/0/0/0"]
    assert put(house, address, "c/0/0/0", body).status_code == 201
    assert put(house, address, "c/0/0/0", body).status_code == 204
    assert_problem(put(house, address, "c/0/0/0", b"other"), 409, "object-differs")
    view = house.http.get(address).json()
    assert (view["objects"], view["received"]) == (1, len(body))
    assert (folder_of(house, address) / "objects/c/0/0/0").read_bytes() == body


def test_the_same_object_at_the_same_time_counts_once(house: House) -> None:
    address, body = begin(house), os.urandom(20_000)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: put(house, address, "c/0", body).status_code, range(8)))
    assert sorted(answers) == [201, *[204] * 7]
    assert house.http.get(address).json()["received"] == len(body)


def test_a_hundred_flipped_bits_are_found(house: House) -> None:
    address, body = begin(house), os.urandom(4096)
    for trial in range(100):
        damaged = bytearray(body)
        damaged[trial * 41] ^= 1 << trial % 8
        answer = house.http.put(f"{address}/objects/c/{trial}", content=bytes(damaged), headers=digest(body))
        assert_problem(answer, 400, "digest-mismatch")
    assert files_below(folder_of(house, address)) == []
    assert house.http.get(address).json()["objects"] == 0


@pytest.mark.parametrize("headers", [{}, {"Content-Digest": "md5=:AAAA:"}, {"Content-Digest": "sha-256=abc"}])
def test_an_object_needs_a_digest(house: House, headers: dict[str, str]) -> None:
    address = begin(house)
    answer = house.http.put(f"{address}/objects/c/0", content=b"x", headers=headers)
    assert_problem(answer, 400, "invalid-digest")


def test_keys_of_which_one_is_in_the_others_way(house: House) -> None:
    address = begin(house)
    assert put(house, address, "c/0", b"one").status_code == 201
    assert_problem(put(house, address, "c/0/1", b"two"), 422, "bad-key")
    assert put(house, address, "1/c/0/1", b"one").status_code == 201
    assert_problem(put(house, address, "1/c/0", b"two"), 422, "bad-key")
    assert files_below(folder_of(house, address)) == ["objects/1/c/0/1", "objects/c/0"]


@pytest.mark.parametrize(
    ("wanted", "status", "code"),
    [
        ({}, 422, "invalid-request"),
        ({"kind": "nifti"}, 422, "invalid-request"),
        ({"kind": "zarr", "colour": 1}, 422, "invalid-request"),
        ({"kind": "zarr", "name": "\0"}, 422, "invalid-request"),
        ({"kind": "zarr", "size": 0}, 422, "invalid-request"),
        ({"kind": "zarr", "size": 1 << 40}, 413, "scan-too-large"),
        ({"kind": "zarr", "manifest": {"c/0": {"size": 1 << 40, "sha256": "0" * 64}}}, 413, "scan-too-large"),
        ({"kind": "zarr", "manifest": {"../c/0": ENTRY}}, 422, "bad-key"),
        ({"kind": "zarr", "manifest": {"c/0": {"size": 1, "sha256": "0"}}}, 422, "invalid-request"),
        (
            {"kind": "zarr", "size": 2, "manifest": {"c/0": {"size": 1, "sha256": "0" * 64}}},
            422,
            "invalid-request",
        ),
    ],
)
def test_a_wrong_beginning(house: House, wanted: dict[str, Any], status: int, code: str) -> None:
    before = files_below(house.root / "arriving")
    assert_problem(house.http.post("/v1/uploads", json=wanted), status, code)
    assert files_below(house.root / "arriving") == before


def test_no_more_arrives_than_was_announced(house: House) -> None:
    address = begin(house, size=10)
    assert put(house, address, "c/0", b"123456").status_code == 201
    assert_problem(put(house, address, "c/1", b"123456"), 413, "scan-too-large")
    assert put(house, address, "c/1", b"1234").status_code == 201
    assert_problem(put(house, address, "c/2", bytes((1 << 20) + 1)), 413, "scan-too-large")
    assert files_below(folder_of(house, address)) == ["objects/c/0", "objects/c/1"]


def test_without_the_array_itself_it_cannot_be_completed(house: House, objects: Objects) -> None:
    address = begin(house)
    put(house, address, "c/0/0/0", objects["c/0/0/0"])
    only = {"manifest": manifest_of({"c/0/0/0": objects["c/0/0/0"]})}
    assert_problem(house.http.post(f"{address}/complete", json=only), 422, "invalid-scan")
    put(house, address, "zarr.json", b"[]")
    both = {"manifest": manifest_of({"c/0/0/0": objects["c/0/0/0"], "zarr.json": b"[]"})}
    answer = house.http.post(f"{address}/complete", json=both)
    assert answer.status_code in (202, 415, 422)
    if answer.status_code == 202:  # judged when it is read
        assert answer.json()["volume"]["state"] == "validating"


def test_a_database_that_fails_at_the_end_costs_nothing(
    house: House, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = begin(house, manifest=manifest_of(objects))
    for key, body in objects.items():
        put(house, address, key, body)

    def unavailable(*_: object, **__: object) -> None:
        raise CatalogueUnavailable

    with monkeypatch.context() as patched:
        patched.setattr("storage.upload_sessions.insert_volume", unavailable)
        for _ in range(2):
            assert_problem(house.http.post(f"{address}/complete"), 503, "catalogue-unavailable")
    assert put(house, address, "c/0/0/0", objects["c/0/0/0"]).status_code == 204
    volume = house.http.post(f"{address}/complete").json()["volume"]
    assert files_below(house.root / "uploads" / volume["id"]) == sorted(objects)


def test_what_nobody_awaits_is_tidied_away(house: House, objects: Objects) -> None:
    kept, aborted = begin(house), begin(house)
    for address in (kept, aborted):
        put(house, address, "c/0/0/0", objects["c/0/0/0"])
    UploadSessions(house.catalogue.database).abort(aborted.rpartition("/")[2])
    unknown = house.root / "arriving" / "upl_nobody"
    unknown.mkdir()
    tidy(house.root, house.catalogue)
    assert folder_of(house, kept).exists()
    assert not folder_of(house, aborted).exists()
    assert not unknown.exists()
    assert put(house, kept, "c/0/0/0", objects["c/0/0/0"]).status_code == 204


def test_an_aborted_upload_is_gone(house: House, objects: Objects) -> None:
    address = begin(house)
    put(house, address, "c/0/0/0", objects["c/0/0/0"])
    assert house.http.delete(address).status_code == 204
    assert not folder_of(house, address).exists()
    for answer in (
        house.http.get(address),
        house.http.delete(address),
        put(house, address, "c/0/0/0", b"x"),
        house.http.post(f"{address}/complete", json={"digest": "0" * 64}),
    ):
        assert assert_problem(answer, 410, "upload-gone")["state"] == "aborted"


def test_an_upload_to_which_nothing_is_added_expires(house: House, objects: Objects) -> None:
    address = begin(house)
    set_expiry(house, 60.0)
    soon = house.http.get(address).json()["expires_at"]
    assert put(house, address, "c/0/0/0", objects["c/0/0/0"]).status_code == 201
    assert house.http.get(address).json()["expires_at"] > soon
    set_expiry(house, -1.0)
    sessions = UploadSessions(house.catalogue.database)
    for sweep in (lambda: None, sessions.expire):
        sweep()
        assert assert_problem(house.http.get(address), 410, "upload-gone")["state"] == "expired"
        assert_problem(put(house, address, "c/0/0/1", objects["c/0/0/1"]), 410, "upload-gone")
        assert_problem(house.http.post(f"{address}/complete"), 410, "upload-gone")


def set_expiry(house: House, in_s: float) -> None:
    """Let every upload expire so many seconds from now."""
    with house.catalogue.database.writing() as connection:
        connection.execute(update(uploads).values(expires_at=now() + in_s))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_after_a_cut_nothing_of_the_object_is_there(house: House, share: float) -> None:
    bodies = {f"c/{number}": os.urandom(20_000) for number in range(20)}
    address = begin(house, manifest=manifest_of(bodies))
    for key, body in bodies.items():
        cut_off(house, address, key, body, int(share * len(body)))
        wait_until(lambda: files_below(folder_of(house, address) / "parts") == [])
        assert key in house.http.get(address).json()["missing"]
        assert not (folder_of(house, address) / "objects" / key).exists()
        assert put(house, address, key, body).status_code == 201
    assert house.http.get(address).json()["missing"] == []


def cut_off(house: House, address: str, key: str, body: bytes, sent: int) -> None:
    """Send a part of an object, and close the connection."""
    assert house.http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", house.http.base_url.port), 10) as connection:
        head = (
            f"PUT {address}/objects/{key} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
            f"Content-Digest: {digest(body)['Content-Digest']}\r\n\r\n"
        )
        connection.sendall(head.encode() + body[:sent])
        time.sleep(0.01)


def test_another_project_sees_nothing(tmp_path: Path) -> None:
    with open_house(tmp_path, authentication=True) as house:
        access = Access(house.catalogue.database)
        access.put_project("other")
        ours, theirs = (access.make_key("k", project_id=name).secret for name in ("default", "other"))
        house.http.headers["Authorization"] = f"Bearer {ours}"
        address = begin(house)
        house.http.headers["Authorization"] = f"Bearer {theirs}"
        for answer in (
            house.http.get(address),
            house.http.delete(address),
            put(house, address, "c/0", b"x"),
            house.http.post(f"{address}/complete", json={"digest": "0" * 64}),
        ):
            assert_problem(answer, 404, "upload-not-found")
