"""Scans in, and what can be seen of them."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from house import SHAPE_XYZ, House, Library, nifti_voxels, wait_until
from PIL import Image
from problem_checks import assert_problem

from storage.errors import CatalogueUnavailable


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def digest_of(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


# Sending


def test_a_scan_is_accepted_and_its_job_rung(house: House, nifti: bytes) -> None:
    answer = house.http.post("/v1/volumes?name=head.nii", content=nifti)
    assert answer.status_code == 202
    volume, job = answer.json()["volume"], answer.json()["job"]
    assert answer.headers["location"] == f"/v1/volumes/{volume['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (volume["name"], volume["state"], volume["shape"]) == ("head.nii", "validating", None)
    assert volume["source_sha256"] == hashlib.sha256(nifti).hexdigest()
    assert volume["source_bytes"] == len(nifti)
    assert (job["kind"], job["state"], job["volume_id"]) == ("ingest", "queued", volume["id"])
    assert job["id"] == volume["ingest_job"]
    assert (house.root / "uploads" / volume["id"]).read_bytes() == nifti
    wait_until(lambda: house.queue.rung == {job["id"]: 1})


def test_a_read_scan_shows_its_geometry(house: House, nifti: bytes) -> None:
    volume = house.http.get(f"/v1/volumes/{house.ready(nifti)}").json()
    x, y, z = SHAPE_XYZ
    assert volume["state"] == "ready"
    assert volume["shape"] == [z, y, x]
    assert volume["spacing"] == [3.0, 2.0, 1.0]
    assert volume["orientation"] == "RAS"
    assert volume["statistics"]["maximum"] == x * y * z
    assert volume["level_shapes"][0] == [z, y, x]
    assert len(volume["level_shapes"]) == volume["levels"]
    assert volume["created_at"].endswith("Z")
    assert volume["links"]["zarr"] == f"/v1/volumes/{volume['id']}/zarr/"


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
def test_an_announced_digest_is_checked(house: House, nifti: bytes, header: str) -> None:
    assert house.send(nifti, headers={header: digest_of(nifti)})
    answer = house.http.post("/v1/volumes", content=nifti, headers={header: digest_of(b"other")})
    assert_problem(answer, 400, "digest-mismatch")
    assert len(files_below(house.root / "uploads")) == 1


def test_digests_of_other_kinds_are_left_alone(house: House, nifti: bytes) -> None:
    assert house.send(nifti, headers={"Content-Digest": "md5=:AAAA:"})
    assert house.send(nifti, headers={"Content-Digest": f"md5=:AAAA:, {digest_of(nifti)}"})


@pytest.mark.parametrize("value", ["sha-256=abc", "sha-256=:abc:", "sha-256=:!!!!:", "sha-256=:AAAA:"])
def test_a_digest_that_cannot_be_read_is_refused(house: House, nifti: bytes, value: str) -> None:
    answer = house.http.post("/v1/volumes", content=nifti, headers={"Content-Digest": value})
    assert_problem(answer, 400, "invalid-digest")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty-upload"),
        (b"neither this nor that " * 50, 415, "unsupported-scan"),
        (b"PK\x03\x04 but no archive", 422, "invalid-scan"),
        (b"\0" * ((1 << 20) + 1), 413, "scan-too-large"),
    ],
)
def test_what_is_no_scan_is_refused_at_once(house: House, body: bytes, status: int, code: str) -> None:
    assert_problem(house.http.post("/v1/volumes", content=body), status, code)
    assert files_below(house.root / "uploads") == []
    assert house.http.get("/v1/volumes").json()["volumes"] == []


def test_the_limit_holds_without_an_announced_length(house: House) -> None:
    pieces = (b"\0" * 65536 for _ in range(17))
    assert_problem(house.http.post("/v1/volumes", content=pieces), 413, "scan-too-large")
    assert files_below(house.root / "uploads") == []


def test_an_announced_length_over_the_limit_is_refused_before_the_body(house: House) -> None:
    with connect(house) as connection:
        connection.sendall(upload_head(house, 1 << 40))
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]
    assert files_below(house.root) == files_below_catalogue(house)


def files_below_catalogue(house: House) -> list[Path]:
    return [path for path in files_below(house.root) if path.name.startswith("catalogue.db")]


def connect(house: House) -> socket.socket:
    address = urlsplit(str(house.http.base_url))
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=10)


def upload_head(house: House, length: int) -> bytes:
    return (
        f"POST /v1/volumes HTTP/1.1\r\nHost: {house.http.base_url.host}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_connection_leaves_nothing(house: House, nifti: bytes, share: float) -> None:
    with connect(house) as connection:
        connection.sendall(upload_head(house, len(nifti)) + nifti[: int(len(nifti) * share)])
        wait_until(lambda: files_below(house.root / "uploads") != [])
    wait_until(lambda: files_below(house.root / "uploads") == [])
    assert house.http.get("/v1/volumes").json()["volumes"] == []
    assert house.send(nifti)


def test_nothing_is_left_when_the_catalogue_does_not_answer(
    house: House, nifti: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise CatalogueUnavailable

    monkeypatch.setattr(house.catalogue, "create_volume", unavailable)
    assert_problem(house.http.post("/v1/volumes", content=nifti), 503, "catalogue-unavailable")
    assert files_below(house.root / "uploads") == []


def test_a_broker_that_is_down_does_not_matter(house: House, nifti: bytes) -> None:
    house.queue.down = True
    accepted = house.send(nifti)
    assert accepted["job"]["state"] == "queued"
    assert house.queue.rung == {}


@pytest.mark.parametrize(
    ("query", "headers", "name"),
    [
        ("?name=a.nii", {}, "a.nii"),
        ("?name=../../etc/passwd", {}, "passwd"),
        ("?name=C%3A%5Cscans%5Ca.nii", {}, "a.nii"),
        ("?name=%00%0A", {}, "scan"),
        ("", {}, "scan"),
        ("", {"Content-Disposition": 'attachment; filename="b.nii"'}, "b.nii"),
        ("", {"Content-Disposition": "attachment; filename*=UTF-8''k%C3%B6pf.nii.gz"}, "scan.nii.gz"),
        ("", {"Content-Disposition": 'attachment; filename="Meier^Ida_1950.DCM"'}, "scan.dcm"),
        ("", {"Content-Disposition": 'attachment; filename="4711"'}, "scan"),
        ("?name=a.nii", {"Content-Disposition": 'attachment; filename="b.nii"'}, "a.nii"),
        ("", {"Content-Disposition": ";;;="}, "scan"),
        ("?name=" + "x" * 300, {}, "x" * 200),
    ],
)
def test_names(house: House, nifti: bytes, query: str, headers: dict[str, str], name: str) -> None:
    answer = house.http.post(f"/v1/volumes{query}", content=nifti, headers=headers)
    assert answer.json()["volume"]["name"] == name


# Lists


def test_pages_hold_every_volume_once_newest_first(house: House, nifti: bytes) -> None:
    sent = [house.send(nifti)["volume"]["id"] for _ in range(5)]
    seen, address = [], "/v1/volumes?page_size=2"
    while address:
        answer = house.http.get(address)
        seen += [volume["id"] for volume in answer.json()["volumes"]]
        house.send(nifti)
        address = answer.links["next"]["url"] if "next" in answer.links else ""
        assert (answer.json()["next_page_token"] is not None) == bool(address)
    assert seen == sent[::-1]


def test_a_poller_is_told_that_nothing_changed(house: House, nifti: bytes) -> None:
    accepted = house.send(nifti)
    for address in ("/v1/volumes", f"/v1/volumes/{accepted['volume']['id']}", "/v1/kinds"):
        first = house.http.get(address)
        known = {"If-None-Match": first.headers["etag"]}
        again = house.http.get(address, headers=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    house.work(accepted["job"]["id"])
    for address in ("/v1/volumes", f"/v1/volumes/{accepted['volume']['id']}"):
        assert house.http.get(address, headers=known).status_code == 200


# Slices


@pytest.mark.parametrize(("axis", "index"), [("z", 5), ("y", 0), ("x", 19)])
def test_a_slice_shows_the_voxels(library: Library, axis: str, index: int) -> None:
    answer = library.http.get(f"{library.address}/slices/{axis}/{index}?window_min=0&window_max=3840")
    assert answer.headers["content-type"] == "image/png"
    voxels = nifti_voxels().transpose()
    plane = voxels.take(index, axis="zyx".index(axis)).astype(float)
    shown = np.asarray(Image.open(io.BytesIO(answer.content)), dtype=float)
    assert np.abs(shown - plane / 3840 * 255).max() <= 0.5


def test_a_slice_of_a_size_has_true_proportions(library: Library) -> None:
    answer = library.http.get(f"{library.address}/slices/z/0?size=160")
    assert Image.open(io.BytesIO(answer.content)).size == (100, 160)
    assert answer.headers["x-pixel-spacing"] == "2,1"


def test_the_default_window_uses_the_whole_range_of_grey(library: Library) -> None:
    answer = library.http.get(f"{library.address}/slices/y/8")
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize(
    ("look", "status", "code"),
    [
        ("z/12", 422, "index-out-of-range"),
        ("z/-1", 422, "index-out-of-range"),
        ("z/0?level=9", 422, "index-out-of-range"),
        ("z/0?frame=1", 422, "index-out-of-range"),
        ("z/one", 422, "invalid-request"),
        ("q/0", 422, "invalid-request"),
        ("z/0?window_min=nan", 422, "invalid-request"),
        ("z/0?window_max=inf", 422, "invalid-request"),
        ("z/0?size=5", 422, "invalid-request"),
        ("z/0?size=100000", 422, "invalid-request"),
        ("z/0?windwo_max=3", 422, "invalid-request"),
        ("z/99999999999999999999", 422, "index-out-of-range"),
    ],
)
def test_a_slice_that_is_not_there(library: Library, look: str, status: int, code: str) -> None:
    answer = library.http.get(f"{library.address}/slices/{look}")
    body = assert_problem(answer, status, code)
    assert body["errors"][0]["pointer"].startswith("#")


def test_a_slice_is_not_drawn_again_for_who_has_it(library: Library) -> None:
    address = f"{library.address}/slices/z/3"
    first = library.http.get(address)
    known = {"If-None-Match": f'"other", {first.headers["etag"]}'}
    assert library.http.get(address, headers=known).status_code == 304
    assert library.http.get(f"{address}?window_min=1", headers=known).status_code == 200
    assert "private" in first.headers["cache-control"]


def test_slices_and_store_wait_until_the_volume_is_ready(house: House, nifti: bytes) -> None:
    volume_id = house.send(nifti)["volume"]["id"]
    for path in ("slices/z/0", "zarr/zarr.json"):
        answer = house.http.get(f"/v1/volumes/{volume_id}/{path}")
        assert assert_problem(answer, 409, "volume-not-ready")["state"] == "validating"


# The OME-Zarr store


def test_the_store_can_be_read_whole_and_in_ranges(library: Library) -> None:
    store = next((library.house.root / "volumes" / library.volume_id).iterdir())
    content = (store / "0/c/0/0/0").read_bytes()
    address = f"{library.address}/zarr/0/c/0/0/0"
    whole = library.http.get(address)
    assert whole.content == content
    assert whole.headers["accept-ranges"] == "bytes"
    head = library.http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(content)
    for given, part in [
        ("bytes=0-9", content[:10]),
        ("bytes=-20", content[-20:]),
        ("bytes=50-", content[50:]),
    ]:
        answer = library.http.get(address, headers={"Range": given})
        assert (answer.status_code, answer.content) == (206, part)
    known = {"If-None-Match": whole.headers["etag"]}
    assert library.http.get(address, headers=known).status_code == 304
    assert library.http.head(address, headers=known).status_code == 304


def test_ranges_that_lie_outside_or_mean_nothing(library: Library) -> None:
    address = f"{library.address}/zarr/zarr.json"
    answer = library.http.get(address, headers={"Range": "bytes=100000000-"})
    assert_problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["content-range"].startswith("bytes */")
    assert_problem(library.http.get(address, headers={"Range": "bytes=x"}), 400, "bad-request")


@pytest.mark.parametrize(
    "key",
    [
        "0/c/9/9/9",
        "nothing",
        "",
        "0",
        ".",
        "..",
        "../../../catalogue.db",
        "..%2f..%2f..%2fcatalogue.db",
        "%252e%252e/catalogue.db",
        "0/../../../../catalogue.db",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "..%5c..%5ccatalogue.db",
        "zarr.json%00",
        "zarr.json/",
        "0//zarr.json",
        "CON",
        "x" * 5000,
    ],
)
def test_the_store_gives_nothing_else(library: Library, key: str) -> None:
    address = urlsplit(str(library.http.base_url))
    head = f"GET {library.address}/zarr/{key} HTTP/1.1\r\nHost: {address.hostname}\r\nConnection: close"
    with connect(library.house) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"application/problem+json" in answer


def test_only_named_origins_may_read_the_store(library: Library) -> None:
    address, allow = f"{library.address}/zarr/zarr.json", "access-control-allow-origin"
    ours, theirs = {"Origin": "https://viewer.example"}, {"Origin": "https://evil.example"}
    assert library.http.get(address, headers=ours).headers[allow] == "https://viewer.example"
    assert allow not in library.http.get(address, headers=theirs).headers
    assert allow not in library.http.get(f"{library.address}", headers=ours).headers
    preflight = {**ours, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    assert library.http.options(address, headers=preflight).status_code == 200
