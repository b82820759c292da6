"""Jobs that are repeated, and the trace that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from errands import ERRAND, errand, fail, listed, send
from house import House, wait_until
from problem_checks import assert_problem

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_failed_job_is_repeated_by_a_new_one_and_both_know(office: House) -> None:
    old = errand(office, parameters={"rank": 4}, labels={"trial": "a"})
    fail(office, old["id"])
    address = f"/v1/jobs/{old['id']}"
    before = office.http.get(address)
    assert before.json()["links"]["retry"] == f"{address}/retry"
    answer = office.http.post(f"{address}/retry")
    new = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{new['id']}")
    assert new["id"] != old["id"]
    assert (new["state"], new["attempt"], new["retry_of"]) == ("queued", 0, old["id"])
    assert (new["parameters"], new["labels"]) == (old["parameters"], old["labels"])
    assert new["links"]["retry_of"] == address
    after = office.http.get(address, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.json()["state"], after.json()["retried_by"]) == (
        200,
        "failed",
        new["id"],
    )
    assert after.json()["links"]["retried_by"] == f"/v1/jobs/{new['id']}"
    wait_until(lambda: office.queue.rung[new["id"]] == 1)


def test_a_cancelled_job_is_repeated_and_only_the_last_retry_is_told(office: House) -> None:
    job_id = errand(office)["id"]
    office.http.post(f"/v1/jobs/{job_id}/cancel")
    _, last = (office.http.post(f"/v1/jobs/{job_id}/retry").json()["id"] for _ in range(2))
    assert office.http.get(f"/v1/jobs/{job_id}").json()["retried_by"] == last


def test_open_and_succeeded_jobs_are_not_repeated(office: House, nifti: bytes) -> None:
    job_id, ingest = errand(office)["id"], office.send(nifti)["job"]["id"]
    for state in ("queued", "running"):
        body = assert_problem(office.http.post(f"/v1/jobs/{job_id}/retry"), 409, "not-retryable")
        assert body["state"] == state
        if state == "queued":
            assert office.catalogue.claim(job_id, "worker", 60) is not None
    office.catalogue.finish(job_id, 1, {})
    assert_problem(office.http.post(f"/v1/jobs/{job_id}/retry"), 409, "not-retryable")
    office.http.post(f"/v1/jobs/{ingest}/cancel")
    refusal = assert_problem(office.http.post(f"/v1/jobs/{ingest}/retry"), 409, "not-retryable")
    assert "send the scan again" in refusal["detail"]
    assert len(listed(office)) == 2


def test_a_retry_is_checked_like_a_new_job(office: House, nifti: bytes) -> None:
    accepted = office.send(nifti)
    body = {"kind": "embed", "volume_id": accepted["volume"]["id"]}
    on_scan, plain = office.http.post("/v1/jobs", json=body).json(), errand(office)
    office.http.post(f"/v1/jobs/{plain['id']}/cancel")
    office.catalogue.request_cancel(accepted["job"]["id"])  # the volume is rejected, the job on it fails
    assert_problem(office.http.post(f"/v1/jobs/{on_scan['id']}/retry"), 409, "volume-not-ready")
    newer: dict[str, Any] = {"type": "object", "properties": {"rank": {"maximum": 5}}}
    office.catalogue.announce("newer", [replace(ERRAND, version="2", parameters_schema=newer)], "cpu")
    refusal = office.http.post(f"/v1/jobs/{plain['id']}/retry")
    body = assert_problem(refusal, 422, "invalid-parameters")
    assert body["errors"][0]["pointer"] == "/parameters/rank"


@pytest.mark.parametrize("job_id", ["job_0", "vol_0", "..%2f", "%00", "job_%F0"])
def test_a_job_that_is_not_there(desk: House, job_id: str) -> None:
    for method, path in (("POST", "/retry"), ("POST", "/cancel"), ("DELETE", ""), ("GET", "")):
        answer = desk.http.request(method, f"/v1/jobs/{job_id}{path}")
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_job_keeps_the_trace_of_its_request(office: House) -> None:
    answer = send(office, headers={"traceparent": TRACE})
    assert answer.json()["traceparent"] == TRACE
    assert office.catalogue.job(answer.json()["id"]).trace == TRACE


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACE + "-what", None),
        ("01" + TRACE[2:] + "-what", TRACE),
        ("ff" + TRACE[2:], None),
        (TRACE.upper(), None),
        ("00-" + "0" * 32 + TRACE[35:], None),
        (TRACE[:36] + "0" * 16 + "-01", None),
        ("x" * 5000, None),
        ("", None),
    ],
)
def test_a_trace_that_is_malformed_is_ignored(desk: House, sent: str, kept: str | None) -> None:
    answer = send(desk, headers={"traceparent": sent})
    assert (answer.status_code, answer.json()["traceparent"]) == (202, kept)
