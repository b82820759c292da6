"""Every error is a problem, and one table knows them all."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest
from house import House, Library, open_house
from problem_checks import assert_problem

import models.errors
import storage.errors
from service.errors import MEANINGS, plain, problem


@pytest.mark.parametrize("module", [storage.errors, models.errors])
def test_the_table_knows_every_code(module: ModuleType) -> None:
    codes = {kind.code for _, kind in inspect.getmembers(module, inspect.isclass) if hasattr(kind, "code")}
    assert codes
    assert codes <= MEANINGS.keys()


def test_an_unknown_code_is_the_service_fault() -> None:
    assert problem("never-heard-of", "x", instance="/")["status"] == 500


def test_facts_never_hide_what_the_standard_says() -> None:
    body = problem("not-found", "x", instance="/", facts={"status": 7, "title": "no", "needed": 3})
    assert (body["status"], body["title"], body["needed"]) == (404, "There is nothing here", 3)


def test_what_json_cannot_hold_is_made_plain() -> None:
    value = {"a": (1, float("nan")), 2: [float("inf"), None], "c": ValueError("x")}
    assert plain(value) == {"a": [1, None], "2": [None, None], "c": "x"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/volumes/vol_0", 404, "volume-not-found"),
        ("GET", "/v1/volumes/..%2f..%2fetc", 404, "not-found"),
        ("GET", "/v1/volumes/%00", 404, "volume-not-found"),
        ("GET", "/v1/jobs/job_0", 404, "job-not-found"),
        ("GET", "/v1/jobs/job_0/result", 404, "job-not-found"),
        ("GET", "/v1/jobs/x'--/artifacts/a", 404, "job-not-found"),
        ("POST", "/v1/jobs/job_0/cancel", 404, "job-not-found"),
        ("DELETE", "/v1/jobs", 405, "method-not-allowed"),
        ("GET", "/v1/jobs?state=resting", 422, "invalid-request"),
        ("GET", "/v1/jobs?page_size=0", 422, "invalid-request"),
        ("GET", "/v1/jobs?page_token=%F0%9F%98%80", 422, "invalid-request"),
        ("GET", "/v1/volumes?page_token=bm8=", 422, "invalid-request"),
        ("GET", "/dashboard/../errors.py", 404, "not-found"),
        ("GET", "/dashboard/errors.py", 422, "invalid-request"),
    ],
)
def test_a_wrong_request_is_a_problem(
    library: Library, method: str, path: str, status: int, code: str
) -> None:
    assert_problem(library.http.request(method, path), status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid-request"),
        (b"{", 422, "invalid-request"),
        (b"[]", 422, "invalid-request"),
        (b'{"kind": 3}', 422, "invalid-request"),
        (b'{"kind": "embed", "colour": "red"}', 422, "invalid-request"),
        (b'{"kind": "a\\u0000b"}', 422, "invalid-request"),
        (b'{"kind": "\\ud800"}', 422, "invalid-request"),
        (b'{"kind": "embed", "parameters": {"rank": NaN}}', 422, "invalid-request"),
        (b'{"kind": "embed", "parameters": {"rank": 1e999}}', 422, "invalid-request"),
        (b'{"kind": "embed", "labels": {"a": "\\u0000"}}', 422, "invalid-request"),
        (b"[" * 100_000, 400, "bad-request"),
        (b'{"kind": "' + b"x" * (4 << 20) + b'"}', 413, "body-too-large"),
    ],
)
def test_a_wrong_body_is_a_problem(library: Library, body: bytes, status: int, code: str) -> None:
    answer = library.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, status, code)


def test_validation_points_at_the_place(library: Library) -> None:
    answer = library.http.post("/v1/jobs", json={"kind": "embed", "parameters": []})
    assert assert_problem(answer, 422, "invalid-request")["errors"][0]["pointer"] == "/parameters"
    answer = library.http.get("/v1/jobs?page_size=many")
    assert assert_problem(answer, 422, "invalid-request")["errors"][0]["pointer"] == "#page_size"


def test_an_unexpected_error_is_a_problem_without_its_secrets(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(house.catalogue, "jobs", explode)
    answer = house.http.get("/v1/jobs")
    assert_problem(answer, 500, "internal-error")
    assert "1234" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_catalogue_that_does_not_answer_is_503_with_a_time_to_return(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise storage.errors.CatalogueUnavailable

    monkeypatch.setattr(house.catalogue, "jobs", unavailable)
    answer = house.http.get("/v1/jobs")
    assert assert_problem(answer, 503, "catalogue-unavailable")["retryable"] is True
    assert int(answer.headers["retry-after"]) >= 1


def test_request_ids(library: Library) -> None:
    assert library.http.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    ours = library.http.get("/livez", headers={"X-Request-Id": "no good"}).headers["x-request-id"]
    assert len(ours) == 32
    assert library.http.get("/livez").headers["x-request-id"] != ours


def test_pages_of_other_sites_may_not_write(library: Library) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert_problem(library.http.post("/v1/volumes", content=b"x", headers=foreign), 403, "cross-site")
    assert library.http.get("/v1/volumes", headers=foreign).status_code == 200


def test_only_allowed_hosts_are_answered(tmp_path: Path) -> None:
    with open_house(tmp_path, allowed_hosts=("127.0.0.1",)) as house:
        assert house.http.get("/livez").status_code == 200
        assert_problem(house.http.get("/livez", headers={"Host": "evil.example"}), 400, "bad-request")


def test_every_problem_type_can_be_looked_up(library: Library) -> None:
    for code, (status, title) in MEANINGS.items():
        assert library.http.get(f"/problems/{code}").json() == {
            "type": f"/problems/{code}",
            "title": title,
            "status": status,
        }
    assert_problem(library.http.get("/problems/none"), 404, "not-found")
