"""Jobs that are removed: by their age, or because somebody asks for it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from errands import errand, fail, listed
from house import House, wait_until
from problem_checks import assert_problem
from sqlalchemy import select, update

from service.idempotency import KEPT_S
from service.sweeper import Sweeper
from storage.artifacts import ArtifactStore
from storage.checkpoints import checkpoint_folder
from storage.jobs import Artifact
from storage.tables import jobs, requests

DAY_S = 86_400.0


def sweeper(house: House, jobs_kept_s: float = 90 * DAY_S) -> Sweeper:
    return Sweeper(
        house.catalogue, house.queue, house.root, every_s=1, ring_after_s=30, jobs_kept_s=jobs_kept_s
    )


def finished(house: House, *names: str) -> tuple[str, list[Path]]:
    """A job that succeeded, and what it left on disk."""
    job_id = str(errand(house)["id"])
    writer = ArtifactStore(house.root / "artifacts").writer(job_id, 1)
    made: tuple[Artifact, ...] = tuple(writer.write_bytes(name, b"abc", "text/plain") for name in names)
    house.finish(job_id, {"answer": 1}, made)
    places = [house.root / "artifacts" / job_id, checkpoint_folder(house.root, job_id)]
    log = house.root / "logs" / f"{job_id}.jsonl"
    for folder in (*places, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    (places[1] / "part").write_bytes(b"x")
    log.write_text("{}\n")
    return job_id, [*places, log]


def age(house: House, job_id: str, days: float) -> None:
    with house.catalogue.database.writing() as connection:
        connection.execute(
            update(jobs).where(jobs.c.id == job_id).values(ended_at=jobs.c.ended_at - days * DAY_S)
        )


def test_an_ended_job_tells_its_last_day_and_is_gone_after_it(office: House) -> None:
    job_id, left = finished(office, "answer.txt")
    open_id = str(errand(office)["id"])
    shown = office.http.get(f"/v1/jobs/{job_id}").json()
    kept = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["ended_at"])
    assert kept.total_seconds() == pytest.approx(90 * DAY_S, abs=0.01)
    assert office.http.get(f"/v1/jobs/{open_id}").json()["expires_at"] is None
    age(office, job_id, 89.9)
    sweeper(office).forget()
    assert office.http.get(f"/v1/jobs/{job_id}").status_code == 200
    age(office, job_id, 0.2)
    sweeper(office).forget()
    for path in ("", "/result", "/artifacts/answer.txt"):
        assert_problem(office.http.get(f"/v1/jobs/{job_id}{path}"), 410, "job-expired")
    assert_problem(office.http.post(f"/v1/jobs/{job_id}/retry"), 410, "job-expired")
    assert_problem(office.http.post(f"/v1/jobs/{job_id}/cancel"), 410, "job-expired")
    assert not any(place.exists() for place in left)
    assert listed(office) == [open_id]


def test_a_job_that_made_a_model_stays_until_somebody_removes_it(office: House) -> None:
    job_id, left = finished(office, "model.safetensors", "metrics.json")
    assert office.http.get(f"/v1/jobs/{job_id}").json()["expires_at"] is None
    age(office, job_id, 3650)
    sweeper(office).forget()
    assert office.http.get(f"/v1/jobs/{job_id}/artifacts/model.safetensors").content == b"abc"
    assert office.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    wait_until(lambda: not any(place.exists() for place in left))


def test_a_job_that_is_removed(office: House) -> None:
    job_id, left = finished(office, "answer.txt")
    other, kept = finished(office, "answer.txt")
    answer = office.http.delete(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    wait_until(lambda: not any(place.exists() for place in left))
    wait_until(lambda: office.catalogue.uncleared() == [])
    assert_problem(office.http.get(f"/v1/jobs/{job_id}"), 410, "job-expired")
    assert_problem(office.http.delete(f"/v1/jobs/{job_id}"), 410, "job-expired")
    assert listed(office) == [other]
    assert all(place.exists() for place in kept)


def test_an_open_job_is_not_removed(office: House) -> None:
    job_id = str(errand(office)["id"])
    body = assert_problem(office.http.delete(f"/v1/jobs/{job_id}"), 409, "job-not-finished")
    assert body["state"] == "queued"
    assert office.catalogue.claim(job_id, "worker", 60) is not None
    assert_problem(office.http.delete(f"/v1/jobs/{job_id}"), 409, "job-not-finished")
    assert office.http.get(f"/v1/jobs/{job_id}").json()["state"] == "running"


def test_the_volume_of_a_removed_job_stays(office: House, nifti: bytes) -> None:
    accepted = office.send(nifti)
    office.work(accepted["job"]["id"])
    assert office.http.delete(f"/v1/jobs/{accepted['job']['id']}").status_code == 204
    volume = office.http.get(f"/v1/volumes/{accepted['volume']['id']}").json()
    assert volume["state"] == "ready"
    assert office.http.get(f"/v1/volumes/{volume['id']}/slices/z/1").status_code == 200
    sweeper(office).tidy()
    assert office.http.get(f"/v1/volumes/{volume['id']}/slices/z/2").status_code == 200


def test_the_sweep_removes_what_a_process_that_died_did_not(office: House) -> None:
    job_id, left = finished(office, "answer.txt")
    office.catalogue.remove_job(job_id)
    assert all(place.exists() for place in left)
    sweeper(office).forget()
    assert not any(place.exists() for place in left)
    assert office.catalogue.uncleared() == []


def test_keys_are_known_for_a_week(office: House) -> None:
    for key in ("old", "new"):
        office.http.post("/v1/jobs", json={"kind": "errand"}, headers={"Idempotency-Key": key})
    with office.catalogue.database.writing() as connection:
        connection.execute(
            update(requests)
            .where(requests.c.key == "old")
            .values(created_at=requests.c.created_at - KEPT_S - 1)
        )
    sweeper(office).forget()
    with office.catalogue.database.reading() as connection:
        assert connection.execute(select(requests.c.key)).scalars().all() == ["new"]


def test_a_failed_job_expires_as_well(office: House) -> None:
    job_id = str(errand(office)["id"])
    fail(office, job_id)
    age(office, job_id, 91)
    sweeper(office).forget()
    assert_problem(office.http.get(f"/v1/jobs/{job_id}"), 410, "job-expired")
