"""`Prefer: wait`: an answer that comes when the job has ended, and holds no thread until then."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from errands import errand, fail, listed, send
from house import House, wait_until

WAITERS = 60
"""More than the server has threads."""


def test_a_job_that_ends_in_time_is_answered_with_its_result(office: House) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(send, office, headers={"Prefer": "wait=20"})
        wait_until(lambda: sum(office.queue.rung.values()) == 1)
        office.finish(listed(office)[0], {"answer": 42})
        answer = asked.result()
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    assert answer.json()["result"] == {"answer": 42}
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert "retry-after" not in answer.headers


def test_a_job_that_fails_in_time_is_answered_too(office: House) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(send, office, headers={"Prefer": "wait=20"})
        wait_until(lambda: sum(office.queue.rung.values()) == 1)
        fail(office, listed(office)[0])
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "over-budget")


def test_a_job_that_takes_longer_goes_on(office: House) -> None:
    answer = send(office, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("respond-async", "respond-async"),
        ('RESPOND-ASYNC; foo="a, wait=9"', "respond-async"),
        ("handling=lenient, Wait=0", "wait=0"),
        ('wait="0", wait=20', "wait=0"),
        ("wait=soon", None),
        ("wait=-1", None),
        ("wait", None),
        ("", None),
        ('="wait', None),
        ("return=minimal", None),
    ],
)
def test_what_is_preferred(desk: House, prefer: str, applied: str | None) -> None:
    answer = send(desk, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert answer.headers.get("preference-applied") == applied


def test_nobody_waits_longer_than_half_a_minute(office: House) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(send, office, headers={"Prefer": "wait=999999999"})
        wait_until(lambda: sum(office.queue.rung.values()) == 1)
        office.finish(listed(office)[0], {})
        assert asked.result().headers["preference-applied"] == "wait=30"


def test_one_who_waits_for_a_retry(office: House) -> None:
    job_id = errand(office)["id"]
    fail(office, job_id)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(office.http.post, f"/v1/jobs/{job_id}/retry", headers={"Prefer": "wait=20"})
        wait_until(lambda: len(listed(office)) == 2)
        office.finish(listed(office)[0], {})
        answer = asked.result()
    assert (answer.status_code, answer.json()["retry_of"]) == (200, job_id)


def test_those_who_wait_hold_no_threads_and_ask_the_catalogue_together(office: House) -> None:
    before = office.parts.watcher.rounds

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=office.http.base_url, limits=limits, timeout=60, trust_env=False
        ) as http:
            body, headers = {"kind": "errand"}, {"Prefer": "wait=30"}
            waiting = [
                asyncio.create_task(http.post("/v1/jobs", json=body, headers=headers)) for _ in range(WAITERS)
            ]
            while len(office.catalogue.jobs(limit=WAITERS)) < WAITERS:
                await asyncio.sleep(0.02)
            kinds = await http.get("/v1/kinds")
            assert kinds.status_code == 200
            assert not any(task.done() for task in waiting)
            for job in office.catalogue.jobs(limit=WAITERS):
                office.finish(job.id, {})
                await asyncio.sleep(0)
            return await asyncio.gather(*waiting)

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["state"] for answer in answers} == {"succeeded"}
    assert office.parts.watcher.rounds - before < 4 * WAITERS
