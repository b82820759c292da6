"""What no description allows: bodies that are no JSON, headers of odd bytes, methods that are not offered."""

from __future__ import annotations

import socket
from http.client import HTTPResponse

import pytest
from furnished import Room
from problem_checks import assert_problem

HOSTILE = {
    "nothing": b"",
    "cut off": b'{"kind": ',
    "deeply nested": b"[" * 100_000,
    "deeply nested in an object": b'{"parameters":' * 20_000 + b"1" + b"}" * 20_000,
    "an infinite number": b'{"kind": 1e400, "size": 1e400, "days": 1e400}',
    "no number": b'{"days": NaN}',
    "a number of many digits": b'{"size": ' + b"9" * 10_000 + b"}",
    "another encoding": '{"kind": "\xe4"}'.encode("latin-1"),
    "half of a pair": b'{"kind": "\\ud800", "name": "\\ud800", "url": "\\ud800", "source": "\\ud800"}',
    "a NUL": b'{"kind": "\\u0000", "name": "\\u0000", "key": "\\u0000", "source": "\\u0000"}',
    "no object": b"null",
}
WITH_JSON = {
    "submit": "/v1/jobs",
    "submit_batch": "/v1/jobs:batch",
    "import_volume": "/v1/volumes:import",
    "open_upload": "/v1/uploads",
    "complete_upload": "/v1/uploads/{upload}/complete",
    "make_webhook": "/v1/webhooks",
    "sign_in": "/v1/session",
    "create_key": "/v1/keys",
}


def test_every_operation_that_takes_json_is_here(room: Room) -> None:
    paths = room.house.http.get("/openapi.json").json()["paths"]
    taking = {
        operation["operationId"]
        for item in paths.values()
        for operation in item.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert taking == set(WITH_JSON)


@pytest.mark.parametrize("operation", WITH_JSON)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_json_is_refused(room: Room, operation: str, hostile: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = room.ask(f"POST {WITH_JSON[operation]}", content=HOSTILE[hostile], headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert_problem(answer, answer.status_code, answer.json()["code"])


@pytest.mark.parametrize("operation", WITH_JSON)
def test_json_that_says_it_is_something_else_is_refused(room: Room, operation: str) -> None:
    address = f"POST {WITH_JSON[operation]}"
    answer = room.ask(address, content=b'{"a": 1}', headers={"Content-Type": "text/plain"})
    assert_problem(answer, 422, "invalid-request")


ODD_HEADERS = (
    b"Accept: \xff\xfe",
    b"Authorization: Bearer \xff",
    b"Authorization: Bearer tt_\xc3\xa4",
    b"Cookie: tomotrain_session=\xff",
    b"Content-Digest: sha-256=:\xff:",
    b"Content-Disposition: attachment; filename*=\xff''\xff",
    b"Content-Length: 99999999999999999999",
    b"Idempotency-Key: \xff",
    b"If-None-Match: \xff",
    b"Last-Event-ID: \xff",
    b"Prefer: wait=\xff",
    b"Range: bytes=\xff-",
    b"Range: bytes=99999999999999999999999-",
    b"traceparent: \xff",
    b"Upload-Length: \xb2",
    b"Upload-Metadata: \xff \xff",
    b"X-Request-Id: \xff",
)
ODDLY_ASKED = (
    "GET /v1/jobs/{succeeded}/artifacts/a.json",
    "GET /v1/jobs/{succeeded}/result",
    "GET /v1/volumes/{volume}/zarr/zarr.json",
    "POST /v1/jobs/{succeeded}/retry",
    "POST /v1/tus",
    "POST /v1/volumes",
    "PUT /v1/uploads/{upload}/objects/c",
)


@pytest.mark.parametrize("header", ODD_HEADERS)
@pytest.mark.parametrize("asked", ODDLY_ASKED)
def test_odd_headers_break_nothing(room: Room, asked: str, header: bytes) -> None:
    status = status_of(room, asked.format_map(room.names), header)
    assert 200 <= status < 500, status


def status_of(room: Room, request: str, header: bytes) -> int:
    """What a request is answered that is written byte by byte."""
    port = room.house.http.base_url.port
    assert port is not None
    lines = [f"{request} HTTP/1.1".encode(), b"Host: a", b"Connection: close", header]
    if not header.startswith(b"Authorization"):
        lines.append(f"Authorization: {room.house.http.headers['authorization']}".encode())
    if request.startswith("P") and not header.startswith(b"Content-Length"):
        lines.append(b"Content-Length: 0")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status


def test_an_address_says_which_methods_it_takes(room: Room) -> None:
    for request, allowed in (
        ("PATCH /v1/jobs", "GET, POST"),
        ("PUT /v1/volumes/{volume}", "DELETE, GET"),
        ("OPTIONS /v1/keys", "GET, POST"),
        ("POST /v1/jobs/{succeeded}/artifacts/a.json", "GET, HEAD"),
        ("DELETE /openapi.json", "GET, HEAD"),
    ):
        answer = room.ask(request)
        body = assert_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == allowed
        assert allowed in body["detail"]


@pytest.mark.parametrize("query", ["page_size=1&page_size=2", "page_size=1&page_size=x", "brief=%00&x=%ff"])
def test_queries_of_any_kind_are_read_or_refused(room: Room, query: str) -> None:
    for address in ("/v1/jobs", "/v1/volumes", "/v1/audit", "/v1/jobs/{succeeded}"):
        answer = room.ask(f"GET {address}?{query}")
        assert answer.status_code in (200, 422)
