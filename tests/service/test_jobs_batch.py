"""Many jobs in one request, all of them or none."""

from __future__ import annotations

import json

import pytest
from errands import listed
from house import House, wait_until
from httpx import Response
from problem_checks import assert_problem


def send(house: House, *jobs: object) -> Response:
    return house.http.post("/v1/jobs:batch", json={"jobs": list(jobs)})


def test_a_batch_is_submitted_in_its_order_and_rung_for(office: House, nifti: bytes) -> None:
    accepted = office.send(nifti)
    on_scan = {"kind": "embed", "volume_id": accepted["volume"]["id"], "labels": {"trial": "a"}}
    answer = send(office, {"kind": "errand", "parameters": {"rank": 3}}, on_scan, {"kind": "errand"})
    assert answer.status_code == 202
    jobs = answer.json()["jobs"]
    assert [(job["kind"], job["state"]) for job in jobs] == [
        ("errand", "queued"),
        ("embed", "waiting"),
        ("errand", "queued"),
    ]
    assert [job["parameters"]["rank"] for job in jobs] == [3, 10, 10]
    assert listed(office)[:3] == [job["id"] for job in reversed(jobs)]
    wait_until(lambda: [office.queue.rung[job["id"]] for job in jobs] == [1, 0, 1])


def test_a_thousand_jobs_and_no_more(office: House) -> None:
    answer = send(office, *[{"kind": "errand", "parameters": {"rank": rank}} for rank in range(1, 1001)])
    jobs = answer.json()["jobs"]
    assert [job["parameters"]["rank"] for job in jobs] == list(range(1, 1001))
    assert len({job["id"] for job in jobs}) == 1000
    wait_until(lambda: len(office.queue.rung) == 1000)
    assert_problem(send(office, *[{"kind": "errand"}] * 1001), 422, "invalid-request")


def test_every_job_that_does_not_fit_is_named_and_none_is_submitted(office: House, nifti: bytes) -> None:
    refused = office.send(nifti)
    office.catalogue.request_cancel(refused["job"]["id"])
    before = listed(office)
    answer = send(
        office,
        {"kind": "errand"},
        {"kind": "errand", "parameters": {"rank": 0, "layout": "ring"}},
        {"kind": "paint"},
        {"kind": "ingest"},
        {"kind": "embed", "volume_id": "vol_0"},
        {"kind": "embed"},
        {"kind": "embed", "volume_id": refused["volume"]["id"]},
    )
    body = assert_problem(answer, 422, "invalid-batch")
    assert [error["pointer"] for error in body["errors"]] == [
        "/jobs/1/parameters/layout",
        "/jobs/1/parameters/rank",
        "/jobs/2/kind",
        "/jobs/3/kind",
        "/jobs/4/volume_id",
        "/jobs/5/volume_id",
        "/jobs/6/volume_id",
    ]
    assert "/jobs/6/volume_id" in body["detail"]
    assert "rejected" in body["detail"]
    assert listed(office) == before


def test_a_batch_is_within_the_quota_or_not_at_all(office: House) -> None:
    office.parts.access.put_project("default", max_open_jobs=3)
    body = assert_problem(send(office, *[{"kind": "errand"}] * 4), 429, "quota-exceeded")
    assert (body["present"], body["wanted"], body["allowed"]) == (0, 4, 3)
    assert send(office, *[{"kind": "errand"}] * 3).status_code == 202
    assert_problem(send(office, {"kind": "errand"}), 429, "quota-exceeded")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", "/"),
        (b"{", "/1"),
        (b"[]", "/"),
        (b"{}", "/jobs"),
        (b'{"jobs": []}', "/jobs"),
        (b'{"jobs": {}}', "/jobs"),
        (b'{"jobs": [1]}', "/jobs/0"),
        (b'{"jobs": [{}]}', "/jobs/0/kind"),
        (b'{"jobs": [{"kind": "errand"}], "more": 1}', "/more"),
        (b'{"jobs": [{"kind": "errand"}, {"kind": "errand", "rank": 1}]}', "/jobs/1/rank"),
        (b'{"jobs": [{"kind": "a\\u0000b"}]}', "/jobs/0/kind"),
        (b'{"jobs": [{"kind": "errand", "parameters": {"rank": NaN}}]}', "/jobs/0/parameters"),
    ],
)
def test_a_batch_that_is_none(desk: House, body: bytes, pointer: str) -> None:
    before = listed(desk)
    answer = desk.http.post("/v1/jobs:batch", content=body, headers={"Content-Type": "application/json"})
    errors = assert_problem(answer, 422, "invalid-request")["errors"]
    assert errors[0]["pointer"] == pointer
    assert listed(desk) == before


def test_a_batch_that_is_too_long(desk: House) -> None:
    body = json.dumps({"jobs": [{"kind": "errand", "parameters": {"x": "y" * (5 << 20)}}]})
    answer = desk.http.post("/v1/jobs:batch", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "body-too-large")
