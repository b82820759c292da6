"""The jobs of another project are not there, whatever is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from errands import fail, offer
from house import House, open_house
from problem_checks import assert_problem

from storage.access import Access, Scope


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service that asks for keys."""
    with open_house(tmp_path, authentication=True) as opened:
        yield offer(opened)


def member(house: House, project: str, *scopes: Scope) -> httpx.Client:
    access = Access(house.catalogue.database)
    access.put_project(project)
    secret = access.make_key("test", scopes or tuple(Scope), project_id=project).secret
    return httpx.Client(
        base_url=house.http.base_url, headers={"Authorization": f"Bearer {secret}"}, trust_env=False
    )


def test_projects_know_nothing_of_each_others_jobs(house: House, nifti: bytes) -> None:
    with member(house, "north") as north, member(house, "south") as south:
        once = {"Idempotency-Key": "1"}
        job_id = north.post("/v1/jobs", json={"kind": "errand"}, headers=once).json()["id"]
        other = south.post("/v1/jobs", json={"kind": "errand"}, headers=once)
        assert "idempotency-replayed" not in other.headers
        assert other.json()["id"] != job_id
        fail(house, job_id)
        for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/cancel"), ("DELETE", "")):
            assert_problem(south.request(method, f"/v1/jobs/{job_id}{path}"), 404, "job-not-found")
        volume_id = north.post("/v1/volumes", content=nifti).json()["volume"]["id"]
        wanted = {"jobs": [{"kind": "errand"}, {"kind": "embed", "volume_id": volume_id}]}
        body = assert_problem(south.post("/v1/jobs:batch", json=wanted), 422, "invalid-batch")
        assert [error["pointer"] for error in body["errors"]] == ["/jobs/1/volume_id"]
        assert "there is no volume" in body["detail"]
        assert [job["id"] for job in south.get("/v1/jobs").json()["jobs"]] == [other.json()["id"]]
        assert north.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert_problem(south.get(f"/v1/jobs/{job_id}"), 404, "job-not-found")
        assert_problem(north.get(f"/v1/jobs/{job_id}"), 410, "job-expired")


def test_who_may_only_read_submits_repeats_and_removes_nothing(house: House) -> None:
    with member(house, "north") as writer, member(house, "north", Scope.JOBS_READ) as reader:
        address = writer.post("/v1/jobs", json={"kind": "errand"}).headers["location"]
        assert reader.get(address).status_code == 200
        for method, path in (
            ("POST", "/v1/jobs"),
            ("POST", "/v1/jobs:batch"),
            ("POST", f"{address}/retry"),
            ("POST", f"{address}/cancel"),
            ("DELETE", address),
        ):
            refusal = reader.request(method, path, json={"kind": "errand"})
            assert_problem(refusal, 403, "missing-scope")
        assert writer.get(address).json()["state"] == "queued"
