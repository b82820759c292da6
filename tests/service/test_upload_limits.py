"""Refused before the first byte: a disk that is nearly full, a project's quota; volumes deleted; imports."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from house import EMBED, House, open_house, wait_until
from problem_checks import assert_problem

from storage.access import Access
from storage.audit import AuditLog
from storage.tidy import tidy

SPOKEN = {"Tus-Resumable": "1.0.0"}
GB = 10**9


class Usage(NamedTuple):
    """What `shutil.disk_usage` tells."""

    total: int
    used: int
    free: int


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 20 * GB) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, total - free, free))


@pytest.mark.parametrize(
    ("total", "free", "taken"),
    [
        (20 * GB, 2 * (1 << 30) + 10_000_000, True),
        (20 * GB, 2 * (1 << 30) + 1000, False),
        (400 * GB, 20 * GB + 10_000_000, True),
        (400 * GB, 20 * GB + 1000, False),
    ],
)
def test_five_per_cent_or_two_gigabytes_are_left_free(
    house: House, nifti: bytes, monkeypatch: pytest.MonkeyPatch, total: int, free: int, taken: bool
) -> None:
    disk_with(monkeypatch, free, total)
    created = house.http.post("/v1/tus", headers={**SPOKEN, "Upload-Length": str(len(nifti))})
    streamed = house.http.post("/v1/volumes", content=nifti)
    in_chunks = house.http.post("/v1/volumes", content=iter([nifti]))
    opened = house.http.post("/v1/uploads", json={"kind": "zarr", "size": len(nifti)})
    assert [answer.status_code for answer in (created, streamed, in_chunks, opened)] == (
        [201, 202, 202, 201] if taken else [507] * 4
    )
    if not taken:
        for answer in (created, streamed, in_chunks, opened):
            body = assert_problem(answer, 507, "storage-low")
            assert body["retryable"]
            assert body["free"] == free
        assert files_below(house.root / "uploads") == []


def test_an_upload_under_way_is_stopped_before_the_disk_is_full_and_goes_on_later(
    house: House, nifti: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = house.http.post("/v1/tus", headers={**SPOKEN, "Upload-Length": str(len(nifti))}).headers[
        "location"
    ]
    headers = {**SPOKEN, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    zarr = house.http.post("/v1/uploads", json={"kind": "zarr"}).headers["location"]
    digest = {"Content-Digest": "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"}  # of b"x"
    with monkeypatch.context() as full:
        disk_with(full, 1000)
        assert_problem(house.http.patch(address, content=nifti, headers=headers), 507, "storage-low")
        answer = house.http.put(f"{zarr}/objects/c/0", content=b"x", headers=digest)
        assert_problem(answer, 507, "storage-low")
        assert house.http.get("/v1/volumes").status_code == 200
    assert house.http.head(address, headers=SPOKEN).headers["upload-offset"] == "0"
    assert house.http.patch(address, content=nifti, headers=headers).headers["x-volume-id"]
    assert house.http.put(f"{zarr}/objects/c/0", content=b"x", headers=digest).status_code == 201


def test_what_is_promised_to_one_upload_is_not_promised_to_another(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_with(monkeypatch, 2 * (1 << 30) + 1_500_000)
    headers = {**SPOKEN, "Upload-Length": "1000000"}
    first = house.http.post("/v1/tus", headers=headers)
    assert first.status_code == 201
    assert_problem(house.http.post("/v1/tus", headers=headers), 507, "storage-low")
    house.http.delete(first.headers["location"], headers=SPOKEN)
    assert house.http.post("/v1/tus", headers=headers).status_code == 201


def test_a_projects_quota_is_kept_by_every_way_in(house: House, nifti: bytes, tmp_path: Path) -> None:
    size = len(nifti)
    Access(house.catalogue.database).put_project("default", max_bytes=2 * size + 10)
    house.send(nifti)
    opened = house.http.post("/v1/tus", headers={**SPOKEN, "Upload-Length": str(size)})
    for answer in (
        house.http.post("/v1/volumes", content=nifti),
        house.http.post("/v1/volumes", content=iter([nifti])),
        house.http.post("/v1/tus", headers={**SPOKEN, "Upload-Length": str(size)}),
        house.http.post("/v1/uploads", json={"kind": "zarr", "size": size}),
    ):
        body = assert_problem(answer, 429, "quota-exceeded")
        assert (body["present"], body["allowed"]) == (2 * size, 2 * size + 10)
    assert len(files_below(house.root / "uploads")) == 1
    headers = {**SPOKEN, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    last = house.http.patch(opened.headers["location"], content=nifti, headers=headers)
    assert house.http.delete(f"/v1/volumes/{last.headers['x-volume-id']}?force=true").status_code == 204
    house.send(nifti)


# Deleting


def test_a_deleted_volume_is_gone_at_once_and_its_bytes_when_tidied(house: House, nifti: bytes) -> None:
    kept, removed = house.ready(nifti), house.ready(nifti)
    address = f"/v1/volumes/{removed}"
    assert house.http.get(f"{address}/slices/z/0").status_code == 200
    assert house.http.delete(address).status_code == 204
    for path in ("", "/slices/z/0", "/zarr/zarr.json"):
        assert_problem(house.http.get(address + path), 404, "volume-not-found")
    assert_problem(house.http.delete(address), 404, "volume-not-found")
    assert [volume["id"] for volume in house.http.get("/v1/volumes").json()["volumes"]] == [kept]
    tidy(house.root, house.catalogue)
    assert [path.name for path in (house.root / "volumes").iterdir()] == [kept]
    assert house.http.get(f"/v1/volumes/{kept}/slices/z/0").status_code == 200
    log = AuditLog(house.catalogue.database).records(limit=20)
    assert ("delete-volume", address, 204) in {(entry.action, entry.subject, entry.outcome) for entry in log}


def test_a_volume_in_use_is_deleted_by_force_alone(house: House, nifti: bytes) -> None:
    volume = house.ready(nifti)
    job = house.http.post("/v1/jobs", json={"kind": EMBED.name, "volume_id": volume}).json()["id"]
    body = assert_problem(house.http.delete(f"/v1/volumes/{volume}"), 409, "volume-in-use")
    assert body["jobs"] == [job]
    assert_problem(house.http.delete(f"/v1/volumes/{volume}?force=perhaps"), 422, "invalid-request")
    assert house.http.delete(f"/v1/volumes/{volume}?force=true").status_code == 204
    assert house.http.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"


# Imports


def test_a_file_below_an_allowed_folder_is_imported(tmp_path: Path, nifti: bytes) -> None:
    scans = tmp_path / "scans"
    (scans / "deep").mkdir(parents=True)
    (scans / "deep" / "DOE JOHN.nii").write_bytes(nifti)
    (scans / "link.nii").symlink_to(scans / "deep" / "DOE JOHN.nii")
    (scans / "no scan").write_bytes(b"nothing " * 100)
    with open_house(tmp_path / "root", import_roots=(str(scans), "s3://bucket/scans")) as house:
        ask = {
            "named": {"source": f"file://{scans}/deep/DOE%20JOHN.nii", "name": "knee"},
            "unnamed": {"source": f"file://localhost{scans}/deep/../deep/DOE%20JOHN.nii"},
            "linked": {"source": f"file://{scans}/link.nii"},
        }
        answers = {name: house.http.post("/v1/volumes:import", json=body) for name, body in ask.items()}
        assert {answer.status_code for answer in answers.values()} == {202}
        volumes = {name: answer.json()["volume"] for name, answer in answers.items()}
        assert [volume["name"] for volume in volumes.values()] == ["knee", "scan.nii", "scan.nii"]
        job = answers["named"].json()["job"]["id"]
        wait_until(lambda: house.queue.rung.get(job) == 1)
        house.work(job)
        ready = house.http.get(f"/v1/volumes/{volumes['named']['id']}").json()
        assert (ready["state"], ready["source_sha256"]) == ("ready", hashlib.sha256(nifti).hexdigest())
        for source, status, code in (
            (f"file://{scans}/absent.nii", 422, "source-not-found"),
            (f"file://{scans}/deep", 422, "source-not-found"),
            (f"file://{scans}/no%20scan", 415, "unsupported-scan"),
            (f"file://{tmp_path}/absent", 403, "source-not-allowed"),
            ("s3://bucket/scans/a.zarr", 501, "source-not-built-in"),
            ("s3://bucket/scans/../b", 403, "source-not-allowed"),
            ("s3://bucket/scans-too/b", 403, "source-not-allowed"),
        ):
            assert_problem(house.http.post("/v1/volumes:import", json={"source": source}), status, code)
        assert len(files_below(house.root / "uploads")) == 3
        assert (scans / "deep" / "DOE JOHN.nii").read_bytes() == nifti
