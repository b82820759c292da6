"""The log of a job over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from house import House

from storage.job_logs import JobLog


@pytest.fixture
def job_id(house: House) -> str:
    """A job that a worker has begun."""
    job = house.catalogue.submit("embed", {})
    assert house.catalogue.claim(job.id, "worker", 60) is not None
    return job.id


def tell(house: House, job_id: str, *texts: str) -> None:
    with JobLog(house.root, job_id) as log:
        for text in texts:
            log.append({"attempt": 1, "level": "info", "text": text})


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text == "" or answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_nothing_is_told_yet(house: House, job_id: str) -> None:
    answer = house.http.get(f"/v1/jobs/{job_id}/logs")
    assert lines(answer) == []
    assert answer.headers["x-next-after"] == "0"
    assert answer.headers["retry-after"] == "1"


def test_a_poller_gets_each_line_once(house: House, job_id: str) -> None:
    address, after, seen = f"/v1/jobs/{job_id}/logs", "0", []
    for texts in (("a", "b"), (), ("c\u2028d", "ä"), ("e",)):
        tell(house, job_id, *texts)
        answer = house.http.get(address, params={"after": after})
        new = [json.loads(line) for line in answer.text.split("\n") if line]
        assert [line["text"] for line in new] == list(texts)
        seen += [line["seq"] for line in new]
        after = answer.headers["x-next-after"]
    assert seen == [1, 2, 3, 4, 5]


def test_long_logs_come_in_pages_that_a_link_joins(house: House, job_id: str) -> None:
    tell(house, job_id, *(str(number) for number in range(25)))
    answer, seen = house.http.get(f"/v1/jobs/{job_id}/logs", params={"limit": 10}), []
    while "next" in answer.links:
        assert "retry-after" not in answer.headers
        seen += lines(answer)
        answer = house.http.get(answer.links["next"]["url"])
    seen += lines(answer)
    assert [line["text"] for line in seen] == [str(number) for number in range(25)]
    assert answer.headers["retry-after"] == "1"
    house.catalogue.finish(job_id, 1, {})
    assert "retry-after" not in house.http.get(f"/v1/jobs/{job_id}/logs").headers


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "after=1e3", f"after={1 << 60}", "limit=0", "limit=1001"]
)
def test_a_query_that_does_not_fit_is_named(query: str, house: House, job_id: str) -> None:
    answer = house.http.get(f"/v1/jobs/{job_id}/logs?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "#" + query.partition("=")[0]


@pytest.mark.parametrize("job", ["job_0", "vol_1", "..%2F..%2Fcatalogue.db", "%00"])
def test_there_is_no_log_without_a_job(job: str, house: House) -> None:
    tell(house, "job_0", "nobody's")
    answer = house.http.get(f"/v1/jobs/{job}/logs")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] in ("job-not-found", "not-found")
