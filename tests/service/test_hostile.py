"""What a hostile client sends: no HTTP, endless heads, poisoned texts, other origins, huge planes."""

from __future__ import annotations

import json
import socket
import tracemalloc
from http.client import HTTPResponse
from typing import Any

import numpy as np
import pytest
from house import House, Library
from problem_checks import assert_problem
from starlette.datastructures import Headers

from service.errors import LONGEST_DETAIL, MOST_ERRORS
from service.intake import _disposition_name, scan_name
from service.protocol import HEAD_BYTES
from service.slices import Window, grey


def exchange(library: Library, sent: bytes) -> tuple[HTTPResponse, dict[str, Any]]:
    """The answer to raw bytes, and its body."""
    port = library.http.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(sent)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer, json.loads(answer.read())


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost 127\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/volumes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem(library: Library, sent: bytes) -> None:
    answer, body = exchange(library, sent)
    assert (answer.status, body["status"], body["code"]) == (400, 400, "bad-request")
    assert answer.getheader("content-type") == "application/problem+json"
    assert answer.getheader("x-request-id") == body["request_id"]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ", b"GET /"])
def test_a_head_without_end_is_cut_off(library: Library, start: bytes) -> None:
    answer, body = exchange(library, start + b"a" * (HEAD_BYTES + 1))
    assert (answer.status, body["code"]) == (431, "head-too-large")


def test_a_head_may_be_long_and_bodies_and_later_heads_do_not_count(library: Library) -> None:
    padding = {"X-Long": "a" * (HEAD_BYTES // 2)}
    for _ in range(4):
        answer = library.http.post("/v1/jobs", content=b"x" * HEAD_BYTES * 2, headers=padding)
        assert_problem(answer, 422, "invalid-request")


def test_an_upgrade_to_a_websocket_is_not_made(library: Library) -> None:
    upgrade = {
        **{"Connection": "Upgrade", "Upgrade": "websocket"},
        **{"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="},
    }
    assert library.http.get("/livez", headers=upgrade).json() == {"status": "ok", "checks": {}}


@pytest.mark.parametrize("end", ["%0a", "%0d%0a", "%0d", "%7f"])
def test_a_line_break_is_part_of_an_address(library: Library, end: str) -> None:
    assert library.http.get(f"{library.address}/zarr/zarr.json{end}").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:1"},
    ],
)
def test_pages_of_other_origins_may_not_write(library: Library, headers: dict[str, str]) -> None:
    assert_problem(library.http.post("/v1/volumes", content=b"x", headers=headers), 403, "cross-site")


@pytest.mark.parametrize("site", ["same-origin", "none", None])
def test_own_pages_may_write(library: Library, site: str | None) -> None:
    own = str(library.http.base_url).rstrip("/")
    headers = {"Origin": own} if site is None else {"Sec-Fetch-Site": site, "Origin": own}
    assert_problem(library.http.post("/v1/volumes", content=b"x", headers=headers), 415, "unsupported-scan")


@pytest.mark.parametrize("place", ["parameters", "labels"])
@pytest.mark.parametrize("pair", ['"a":"\\ud800"', '"\\udfff":"a"'])
def test_half_a_surrogate_pair_poisons_no_list(house: House, nifti: bytes, place: str, pair: str) -> None:
    volume = house.send(nifti)["volume"]["id"]
    inside = f'{{"nested":{{{pair}}}}}' if place == "parameters" else f"{{{pair}}}"
    body = f'{{"kind":"embed","volume_id":"{volume}","{place}":{inside}}}'
    answer = house.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid-request")
    assert house.http.get("/v1/jobs").status_code == 200


def test_a_problem_is_not_larger_than_what_it_answers(library: Library) -> None:
    unknown = {f"{number:0100d}": 1 for number in range(9000)}
    body = assert_problem(library.http.post("/v1/jobs", json=unknown), 422, "invalid-request")
    assert len(body["errors"]) == MOST_ERRORS
    assert len(body["detail"]) == LONGEST_DETAIL
    wanted = {"kind": "embed", "volume_id": library.volume_id, "parameters": {"layout": "x" * 900_000}}
    body = assert_problem(library.http.post("/v1/jobs", json=wanted), 422, "invalid-parameters")
    assert len(json.dumps(body)) < 4 * LONGEST_DETAIL


def test_names_turn_no_line_around() -> None:
    assert scan_name("scan\u202egz.iin\u2066\x9b31m\u2028.nii", Headers()) == "scangz.iin31m.nii"


@pytest.mark.parametrize(
    ("coded", "name"),
    [
        ("punycode''%ff", "\ufffd"),
        ("idna''" + "a" * 3000, "a" * 3000),
        ("unicode_escape''%5Cud800", "\\ud800"),
        ("UTF-8''%e2%82%ac", "\u20ac"),
        ("iso-8859-1''%e4", "\xe4"),
    ],
)
def test_no_codec_of_the_clients_choice_is_run(house: House, nifti: bytes, coded: str, name: str) -> None:
    header = f"attachment; filename*={coded}"
    assert _disposition_name(header) == name
    assert house.send(nifti, headers={"Content-Disposition": header})["volume"]["name"] == "scan"


def test_there_is_no_unchanged_slice_outside_of_a_volume(library: Library) -> None:
    answer = library.http.get(f"{library.address}/slices/z/999", headers={"If-None-Match": "*"})
    assert_problem(answer, 422, "index-out-of-range")


def test_a_plane_too_large_to_draw_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.volumes._MOST_PIXELS", 20 * 16 - 1)
    answer = library.http.get(f"{library.address}/slices/z/0")
    assert "coarser level" in assert_problem(answer, 422, "invalid-request")["detail"]
    assert library.http.get(f"{library.address}/slices/x/0").status_code == 200


def test_drawing_needs_little_more_memory_than_the_picture() -> None:
    plane = np.arange(1 << 24, dtype=np.uint16).reshape(1 << 10, 1 << 14)
    tracemalloc.start()
    try:
        picture = grey(plane, Window(0.0, 65535.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < picture.nbytes + (48 << 20)
    np.testing.assert_array_equal(picture[3], np.rint(plane[3] / 65535.0 * 255.0))
