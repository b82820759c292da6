"""Sixty strings that try to leave their folder, on every path parameter of uploads and on imports."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, open_house

from storage.sent_objects import MOST_IN_MANIFEST, check_key
from storage.upload_errors import BadKey

UP = "../../../catalogue.db"
STRINGS = (
    *("..", "../", ".", "./", "/", "//", "...", "....//", "~", "~root"),
    *(UP, "..%2f..%2f..%2fcatalogue.db", "%2e%2e/%2e%2e/catalogue.db", "%252e%252e%252fcatalogue.db"),
    *("..%252f..%252fcatalogue.db", "..%c0%af..%c0%afcatalogue.db", "..%u2216catalogue.db", "%2e%2e%5c"),
    *("..\\..\\catalogue.db", "..%5c..%5ccatalogue.db", "\\\\host\\share\\x", "C:\\x", "C:/x", "C%3a%5cx"),
    *("/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "file:///etc/passwd", "/proc/self/environ"),
    *("c/0%00", "c/0%00.txt", "%00", "zarr.json%00", "c/0%0a", "c/0%0d%0aX: y", "%0a", "c/0%20", "%20c/0"),
    *("c/../c/0", "c/0/../../x", "0/../c/0", "c//0", "/c/0", "c/0/", "c/-1", "c/+1", "c/0x1", "c/1e3"),
    *(
        "c/\u0661".encode().decode("latin-1"),
        "c/%d9%a1",
        "c/%ef%bc%91",
        "c/00",
        "c/0/0/0/0/0/0",
        "zarr.json/",
    ),
    *("CON", "NUL", "COM1", "aux.txt", "c/0:stream", "c/" + "9" * 20, "c/" + "0/" * 300, "x" * 5000),
    *("zarr.JSON", "manifest.json", "lock", "data", "objects/c/0", "parts/x", "$(id)", "`id`", "{{7*7}}"),
)


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with an open Zarr upload; its folder stands in one that holds nothing else."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "allowed").mkdir()
    (outside / "allowed" / "link").symlink_to(outside / "root" / "catalogue.db")
    (outside / "allowed" / "up").symlink_to("..")
    (outside / "allowed-too").mkdir()
    (outside / "allowed-too" / "x.nii").write_bytes(b"x")
    with open_house(outside / "root", import_roots=(str(outside / "allowed"),)) as opened:
        yield opened


def status_of(house: House, method: str, target: str, body: bytes = b"") -> int:
    """The status of a request whose target is sent as it is."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTus-Resumable: 1.0.0\r\n"
        f"Upload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n"
        f"Content-Digest: sha-256=:{digest}:\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert house.http.base_url.port is not None
    with socket.create_connection(("127.0.0.1", house.http.base_url.port), 10) as connection:
        connection.sendall(head.encode("latin-1") + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1])


def everything_below(folder: Path) -> list[str]:
    """All files but the catalogue's own."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if "catalogue.db" not in name)


def test_there_are_sixty_of_them_at_least() -> None:
    assert len(set(STRINGS)) >= 60


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/uploads/{}"),
        ("DELETE", "/v1/uploads/{}"),
        ("POST", "/v1/uploads/{}/complete"),
        ("PUT", "/v1/uploads/{}/objects/c/0"),
        ("HEAD", "/v1/tus/{}"),
        ("PATCH", "/v1/tus/{}"),
        ("DELETE", "/v1/tus/{}"),
        ("DELETE", "/v1/volumes/{}"),
    ],
)
def test_no_string_is_an_id(fort: House, method: str, target: str) -> None:
    before = everything_below(fort.root.parent)
    statuses = {text: status_of(fort, method, target.format(text)) for text in STRINGS if "\r" not in text}
    outside = {text: status for text, status in statuses.items() if not 400 <= status < 500}
    assert outside == {}
    assert everything_below(fort.root.parent) == before


def test_no_string_is_a_key(fort: House) -> None:
    address = fort.http.post("/v1/uploads", json={"kind": "zarr"}).headers["location"]
    before = everything_below(fort.root.parent)
    refused = {text: status_of(fort, "PUT", f"{address}/objects/{text}", b"x") for text in STRINGS}
    assert {text: status for text, status in refused.items() if not 400 <= status < 500} == {}
    assert everything_below(fort.root.parent) == before
    assert fort.http.get(address).json()["objects"] == 0


def test_no_string_is_a_key_of_a_manifest(fort: House) -> None:
    before = everything_below(fort.root.parent)
    for text in STRINGS:
        body = {"kind": "zarr", "manifest": {text: {"size": 1, "sha256": "0" * 64}}}
        assert fort.http.post("/v1/uploads", json=body).status_code == 422
    assert everything_below(fort.root.parent) == before


def test_no_string_is_imported(fort: House) -> None:
    allowed = fort.root.parent / "allowed"
    before = everything_below(fort.root.parent)
    places = [
        *STRINGS,
        *(f"file://{text}" for text in STRINGS),
        *(f"file://{allowed}/{text}" for text in STRINGS),
        *(f"file://{allowed}/link", f"file://{allowed}/up/root/catalogue.db", f"file://{allowed}-too/x.nii"),
        *("http://169.254.169.254/latest/meta-data", "http://localhost/x", "https://[::1]/x", "ftp://a/x"),
        *("s3://bucket/key", "s3://169.254.169.254/key", "file://host/srv/x", "file://[", "gopher://a"),
        *(f"file://{allowed}/x?y", f"file://{allowed}/x#y", "FILE:///etc/passwd", "data:,x", "//x", "vol_1"),
    ]
    for source in places:
        answer = fort.http.post("/v1/volumes:import", json={"source": source})
        assert answer.status_code in (403, 422), (source, answer.text)
        assert answer.json()["code"] in ("source-not-allowed", "source-not-found", "invalid-request"), source
    assert everything_below(fort.root.parent) == before
    assert fort.http.get("/v1/volumes").json()["volumes"] == []


def test_nothing_is_asked_over_the_network(fort: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: object) -> None:
        if address != ("127.0.0.1", fort.http.base_url.port):
            asked.append(address)
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: asked.append(given) or [])
    for source in ("http://169.254.169.254/x", "https://example.org/x", "s3://bucket/x", "ftp://a/b"):
        answer = fort.http.post("/v1/volumes:import", json={"source": source})
        assert answer.status_code == 403
    assert asked == []


def test_keys_are_judged_without_a_server_too() -> None:
    for text in STRINGS:
        with pytest.raises(BadKey):
            check_key(text)
    for key in ("zarr.json", "0/zarr.json", "c/0", "c/0/0/0", "12/c/1/2/3/4/5"):
        check_key(key)


TYPED = {"Content-Type": "application/json"}


def test_a_body_is_no_way_to_fill_the_memory(fort: House) -> None:
    body = b'{"kind": "zarr", "name": "' + b"x" * (9 << 20) + b'"}'
    assert fort.http.post("/v1/uploads", content=body, headers=TYPED).status_code == 413


@pytest.mark.slow
def test_a_manifest_has_so_many_objects_at_most(fort: House) -> None:
    entries = {f"c/{number}": {"size": 1, "sha256": "0" * 64} for number in range(MOST_IN_MANIFEST + 1)}
    body = json.dumps({"kind": "zarr", "manifest": entries}).encode()
    assert fort.http.post("/v1/uploads", content=body, headers=TYPED).status_code == 422
