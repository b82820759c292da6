"""Lists of jobs: what they are asked for, page by page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

import pytest
from errands import errand, listed
from house import House
from problem_checks import assert_problem


def test_jobs_are_found_by_their_labels(office: House) -> None:
    odd = {"tri\"a'l": 'a:b "c" $.x', "site": "A&E", "": "empty"}
    first = errand(office, labels={"trial": "a", "site": "north"})["id"]
    second = errand(office, labels={"trial": "a", "site": "south"})["id"]
    third = errand(office, labels=odd)["id"]
    errand(office)
    assert listed(office, "label=trial:a") == [second, first]
    assert listed(office, "label=trial:a&label=site:south") == [second]
    assert listed(office, "label=trial:a&label=trial:b") == []
    assert listed(office, "label=trial:") == []
    for name, value in odd.items():
        if ":" not in name:
            assert listed(office, urlencode({"label": f"{name}:{value}"})) == [third]


def test_jobs_are_found_by_model_and_time(office: House) -> None:
    asked = errand(office, kind="ask", parameters={"model": "job_7"})["id"]
    errand(office, kind="ask", parameters={"model": "job_8"})
    last = errand(office)
    assert listed(office, "model=job_7") == [asked]
    assert listed(office, "model=job_9") == []
    between = quote((datetime.fromisoformat(last["created_at"]) - timedelta(milliseconds=1)).isoformat())
    assert last["id"] in listed(office, f"created_after={between}")
    assert asked in listed(office, f"created_before={between}")
    soon = quote((datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert listed(office, f"created_after={soon}") == []
    assert len(listed(office, f"created_before={soon}")) == 3
    assert (
        listed(office, "created_before=9999-12-31T23:59:59%2B14:00&created_after=0001-01-01T00:00:00Z") != []
    )


def test_pages_keep_to_what_was_asked_for(office: House) -> None:
    wanted = [errand(office, labels={"trial": "a"})["id"] for _ in range(5)]
    errand(office, labels={"trial": "b"})
    found: list[str] = []
    address: str | None = "/v1/jobs?label=trial:a&page_size=2"
    while address is not None:
        answer = office.http.get(address)
        found += [job["id"] for job in answer.json()["jobs"]]
        errand(office, labels={"trial": "a"})  # newer ones do not move the pages
        address = answer.links["next"]["url"] if "next" in answer.links else None
    assert found == wanted[::-1]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=lost", "#state"),
        ("label=trial", "#label"),
        ("label=" + "a" * 201 + ":b", "#label.0"),
        ("&".join(["label=a:b"] * 9), "#label"),
        ("label=a%00:b", "#label.0"),
        ("kind=%00", "#kind"),
        ("model=" + "a" * 101, "#model"),
        ("volume_id=a%00", "#volume_id"),
        ("created_after=yesterday", "#created_after"),
        ("created_after=2026-01-01T00:00:00", "#created_after"),
        ("created_before=NaN", "#created_before"),
        ("page_size=0", "#page_size"),
        ("page_size=201", "#page_size"),
        ("page_token=x", "#page_token"),
    ],
)
def test_a_list_that_cannot_be_had(desk: House, query: str, pointer: str) -> None:
    body = assert_problem(desk.http.get(f"/v1/jobs?{query}"), 422, "invalid-request")
    assert body["errors"][0]["pointer"] == pointer


def test_a_list_that_has_not_changed_is_not_sent_again(office: House) -> None:
    errand(office)
    answer = office.http.get("/v1/jobs?label=a:b")
    known = {"If-None-Match": answer.headers["etag"]}
    assert office.http.get("/v1/jobs?label=a:b", headers=known).status_code == 304
    errand(office, labels={"a": "b"})
    assert office.http.get("/v1/jobs?label=a:b", headers=known).status_code == 200
