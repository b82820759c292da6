"""Requests that are sent again are done once: `Idempotency-Key`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from errands import errand, fail, listed, send
from house import House, wait_until
from problem_checks import assert_problem

KEY = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
BATCH = {"jobs": [{"kind": "errand", "parameters": {"rank": rank}} for rank in (1, 2, 3)]}


def test_a_request_that_is_sent_again_makes_no_second_job(office: House) -> None:
    first = send(office, headers={"Idempotency-Key": KEY}, parameters={"rank": 2})
    job_id = first.json()["id"]
    assert "idempotency-replayed" not in first.headers
    wait_until(lambda: office.queue.rung[job_id] == 1)
    office.finish(job_id, {"answer": 1})
    again = send(office, headers={"Idempotency-Key": KEY}, parameters={"rank": 2})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.json()["id"], again.json()["result"]) == (job_id, {"answer": 1})
    assert listed(office) == [job_id]
    assert office.queue.rung[job_id] == 1


def test_the_same_key_with_and_without_quotation_marks_and_however_the_body_is_spaced(office: House) -> None:
    first = send(office, headers={"Idempotency-Key": KEY}, parameters={"rank": 2, "layout": "tt"})
    again = office.http.post(
        "/v1/jobs",
        content=b'{"parameters": {"layout":\t"tt", "rank": 2},  "kind": "errand"}',
        headers={"Idempotency-Key": KEY.strip('"'), "Content-Type": "application/json"},
    )
    assert again.json()["id"] == first.json()["id"]


def test_a_request_is_known_when_the_world_has_changed(office: House, nifti: bytes) -> None:
    accepted = office.send(nifti)
    body = {"kind": "embed", "volume_id": accepted["volume"]["id"]}
    first = office.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "x"})
    office.catalogue.request_cancel(accepted["job"]["id"])  # and the volume is rejected
    again = office.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "x"})
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert_problem(office.http.post("/v1/jobs", json=body), 409, "volume-not-ready")


def test_a_key_belongs_to_one_request(office: House) -> None:
    headers = {"Idempotency-Key": KEY}
    job = send(office, headers=headers, parameters={"rank": 2}).json()
    refusal = send(office, headers=headers, parameters={"rank": 3})
    assert KEY.strip('"') in assert_problem(refusal, 422, "idempotency-key-reused")["detail"]
    assert listed(office) == [job["id"]]


def test_at_another_address_it_is_another_key(office: House) -> None:
    headers = {"Idempotency-Key": KEY}
    job_id = send(office, headers=headers).json()["id"]
    batch = office.http.post("/v1/jobs:batch", json=BATCH, headers=headers)
    office.http.post(f"/v1/jobs/{job_id}/cancel")
    retry = office.http.post(f"/v1/jobs/{job_id}/retry", headers=headers)
    assert (batch.status_code, retry.status_code) == (202, 202)
    assert "idempotency-replayed" not in {**batch.headers, **retry.headers}
    assert len(listed(office)) == 5


def test_a_request_that_was_refused_may_be_mended(office: House) -> None:
    headers = {"Idempotency-Key": KEY}
    assert_problem(send(office, headers=headers, parameters={"rank": 0}), 422, "invalid-parameters")
    assert send(office, headers=headers, parameters={"rank": 1}).status_code == 202


@pytest.mark.parametrize(
    "key",
    ["", '"', '""', '"a', "a b", "a, b", 'a"b', '"a\\b"', "a\\", "é", "a" * 256, '"' + "a" * 256 + '"'],
)
def test_a_key_that_cannot_be_read(desk: House, key: str) -> None:
    before, headers = listed(desk), [(b"Idempotency-Key", key.encode())]
    answer = desk.http.post("/v1/jobs", json={"kind": "errand"}, headers=headers)
    body = assert_problem(answer, 400, "invalid-idempotency-key")
    assert body["errors"][0]["pointer"] == "#Idempotency-Key"
    assert listed(desk) == before


def test_two_keys_in_one_request(desk: House) -> None:
    headers = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")]
    answer = desk.http.post("/v1/jobs", json={"kind": "errand"}, headers=headers)
    assert_problem(answer, 400, "invalid-idempotency-key")


def test_the_longest_key(office: House) -> None:
    key = "~" * 255
    first, again = (send(office, headers={"Idempotency-Key": key}).json()["id"] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:batch"])
def test_many_at_once_make_one_set_of_jobs(office: House, path: str) -> None:
    body: Any = BATCH if path.endswith("batch") else {"kind": "errand"}
    together = Barrier(8)

    def one(_: int) -> tuple[int, str, list[str]]:
        together.wait()
        answer = office.http.post(path, json=body, headers={"Idempotency-Key": KEY})
        document = answer.json()
        ids = [job["id"] for job in document.get("jobs", [document])]
        return answer.status_code, answer.headers.get("idempotency-replayed", "false"), ids

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert sorted(replayed for _, replayed, _ in answers) == ["false"] + ["true"] * 7
    assert {status for status, _, _ in answers} == {202}
    (ids,) = {tuple(ids) for _, _, ids in answers}
    assert listed(office) == list(reversed(ids))


def test_retrying_again_is_the_same_retry(office: House) -> None:
    job_id = errand(office)["id"]
    fail(office, job_id)
    first, again = (
        office.http.post(f"/v1/jobs/{job_id}/retry", headers={"Idempotency-Key": "r1"}) for _ in range(2)
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(listed(office)) == 2


def test_jobs_of_a_request_that_have_been_removed(office: House) -> None:
    job_id = send(office, headers={"Idempotency-Key": KEY}).json()["id"]
    office.http.post(f"/v1/jobs/{job_id}/cancel")
    assert office.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert_problem(send(office, headers={"Idempotency-Key": KEY}), 410, "job-expired")
    assert listed(office) == []


def test_a_scan_that_is_sent_again_is_one_volume(office: House, nifti: bytes) -> None:
    headers = {"Idempotency-Key": KEY}
    first = office.http.post("/v1/volumes", content=nifti, headers=headers)
    office.work(first.json()["job"]["id"])
    uploads = list((office.root / "uploads").iterdir())
    again = office.http.post("/v1/volumes", content=nifti, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["volume"]["id"] == first.json()["volume"]["id"]
    assert again.json()["volume"]["state"] == "ready"
    assert office.queue.rung == {first.json()["job"]["id"]: 1}
    assert list((office.root / "uploads").iterdir()) == uploads
    assert len(office.catalogue.volumes()) == 1
    for options in ({"content": nifti + b"\0"}, {"content": nifti, "params": {"name": "other"}}):
        refusal = office.http.post("/v1/volumes", headers=headers, **options)
        assert_problem(refusal, 422, "idempotency-key-reused")
    refusal = office.http.post("/v1/volumes", content=nifti, headers={"Idempotency-Key": "a b"})
    assert_problem(refusal, 400, "invalid-idempotency-key")
    assert list((office.root / "uploads").iterdir()) == uploads
    assert len(office.catalogue.volumes()) == 1
