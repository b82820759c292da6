"""Where jobs stand: their place in the queue, their worker, and when to ask again."""

from __future__ import annotations

from typing import Any

import pytest
from errands import errand, fail, offer
from house import House, open_house
from sqlalchemy import update

from service.standing import Standings
from storage.jobs import Line, Queue
from storage.tables import jobs


def look(house: House, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = house.http.get(f"/v1/jobs/{job_id}").json()
    return document


def took(house: House, seconds: float) -> str:
    """An errand that ended and took so long; its id."""
    job_id = str(errand(house)["id"])
    house.finish(job_id, {})
    with house.catalogue.database.writing() as connection:
        connection.execute(
            update(jobs).where(jobs.c.id == job_id).values(started_at=jobs.c.ended_at - seconds)
        )
    return job_id


def test_a_job_tells_its_place_while_it_waits(office: House, nifti: bytes) -> None:
    took(office, 20.0)
    first, second = errand(office)["id"], errand(office)["id"]
    office.parts.standings.forget()
    assert look(office, first)["queue_position"] == {"ahead": 0, "position": 1, "eta_seconds": 0.0}
    assert look(office, second)["queue_position"] == {"ahead": 1, "position": 2, "eta_seconds": 20.0}
    (shown,) = (job for job in office.http.get("/v1/jobs").json()["jobs"] if job["id"] == second)
    assert shown["queue_position"]["ahead"] == 1
    running = office.catalogue.claim(first, "worker", 60)
    assert running is not None
    office.parts.standings.forget()
    assert look(office, first)["queue_position"] is None
    place = look(office, second)["queue_position"]
    assert (place["ahead"], place["position"]) == (0, 1)
    assert 15 < place["eta_seconds"] <= 20


def test_a_job_that_waits_for_its_scan_has_a_place_too(office: House, nifti: bytes) -> None:
    queued = errand(office)["id"]
    accepted = office.send(nifti)
    body = {"kind": "embed", "volume_id": accepted["volume"]["id"]}
    waiting = office.http.post("/v1/jobs", json=body).json()
    office.parts.standings.forget()
    assert look(office, queued)["queue_position"]["ahead"] == 0
    place = look(office, waiting["id"])["queue_position"]
    assert place == {"ahead": 1, "position": 2, "eta_seconds": None}  # no such job has ended yet


def test_a_moved_place_is_news_to_a_poller(office: House) -> None:
    first, second = errand(office)["id"], errand(office)["id"]
    address = f"/v1/jobs/{second}"
    office.parts.standings.forget()
    known = {"If-None-Match": office.http.get(address).headers["etag"]}
    assert office.http.get(address, headers=known).status_code == 304
    fail(office, first)
    office.parts.standings.forget()
    answer = office.http.get(address, headers=known)
    assert (answer.status_code, answer.json()["queue_position"]["ahead"]) == (200, 0)


def test_one_look_at_the_queue_serves_all_who_ask(office: House, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, line = [], office.catalogue.line

    def counted(queue: Queue, *, fresh_s: float) -> Line:
        looks.append(queue)
        return line(queue, fresh_s=fresh_s)

    monkeypatch.setattr(office.catalogue, "line", counted)
    standings = Standings(office.catalogue, worker_fresh_s=60, kept_s=60, fresh_s=3600)
    waiting = [office.catalogue.submit("errand", {}) for _ in range(20)]
    places = [standings.of(job).place for job in waiting * 3]
    assert [place.ahead for place in places if place] == list(range(20)) * 3
    assert looks == [Queue.BATCH]


def test_nobody_tells_when_no_worker_is_there(tmp_path: Any) -> None:
    with open_house(tmp_path, worker_fresh_s=1e-9) as opened:
        took(offer(opened), 20.0)
        opened.parts.standings.forget()
        assert look(opened, errand(opened)["id"])["queue_position"]["eta_seconds"] is None


def test_a_job_names_its_worker_and_the_device(office: House) -> None:
    job_id = errand(office)["id"]
    assert look(office, job_id)["worker"] is None
    assert office.catalogue.claim(job_id, "worker", 60) is not None
    assert look(office, job_id)["worker"] == {"id": "worker", "device": "cuda:0"}


def test_pollers_are_asked_to_come_back_more_rarely_as_a_job_grows_old(office: House) -> None:
    job_id = str(errand(office)["id"])
    asked = []
    for age_s in (0, 60, 3600):
        with office.catalogue.database.writing() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(created_at=jobs.c.created_at - age_s)
            )
        answer = office.http.get(f"/v1/jobs/{job_id}")
        known = {"If-None-Match": answer.headers["etag"]}
        unchanged = office.http.get(f"/v1/jobs/{job_id}", headers=known)
        assert unchanged.headers["retry-after"] == answer.headers["retry-after"]
        asked.append(int(answer.headers["retry-after"]))
    assert asked == [1, 6, 15]
