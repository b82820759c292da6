"""Alive, ready, and what the service says of itself."""

from __future__ import annotations

import pytest
from house import House, open_house
from problem_checks import assert_problem
from sqlalchemy import delete

from storage.tables import kinds


def test_ready_when_all_parts_are_there(house: House) -> None:
    assert house.http.get("/livez").json()["status"] == "ok"
    answer = house.http.get("/readyz")
    assert answer.status_code == 200
    parts = {name: answer.json()["checks"][name] for name in ("catalogue", "broker", "worker")}
    assert parts == {"catalogue": "ok", "broker": "ok", "worker": "ok"}


def test_each_missing_part_is_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_house(tmp_path_factory.mktemp("root"), worker_fresh_s=1e-9) as house:
        house.queue.down = True
        body = assert_problem(house.http.get("/readyz"), 503, "not-ready")
        assert [error["pointer"] for error in body["errors"]] == ["broker", "worker"]
        assert "broker" in body["detail"]
        monkeypatch.setattr(house.catalogue, "ping", lambda: 1 / 0)
        body = assert_problem(house.http.get("/readyz"), 503, "not-ready")
        assert body["errors"][0]["pointer"] == "catalogue"
        assert house.http.get("/livez").status_code == 200


def test_a_service_without_workers_says_so(house: House) -> None:
    with house.catalogue.database.writing() as connection:
        connection.execute(delete(kinds))
    assert "start one" in assert_problem(house.http.get("/readyz"), 503, "not-ready")["detail"]


def _error_type(path: str, status: str) -> str:
    """Of an error's body: what STOW-RS did not store it tells as PS3.18 10.5.3.2 has it."""
    stow = path.startswith("/dicomweb/") and status == "409"
    return "application/dicom+json" if stow else "application/problem+json"


def test_the_contract_names_every_route_and_its_errors(house: House) -> None:
    contract = house.http.get("/openapi.json").json()
    assert contract["openapi"].startswith("3.1")
    paths = contract["paths"]
    assert set(paths) == {
        "/v1/volumes",
        "/v1/volumes/{volume_id}",
        "/v1/volumes/{volume_id}/slices/{axis}/{index}",
        "/v1/volumes/{volume_id}/zarr/{key}",
        "/v1/volumes:import",
        "/v1/uploads",
        "/v1/uploads/{upload_id}",
        "/v1/uploads/{upload_id}/objects/{key}",
        "/v1/uploads/{upload_id}/complete",
        "/v1/tus",
        "/v1/tus/{upload_id}",
        "/dicomweb/studies",
        "/dicomweb/series",
        "/dicomweb/studies/{study}",
        "/dicomweb/studies/{study}/metadata",
        "/dicomweb/studies/{study}/series",
        "/dicomweb/studies/{study}/instances",
        "/dicomweb/studies/{study}/series/{series}",
        "/dicomweb/studies/{study}/series/{series}/metadata",
        "/dicomweb/studies/{study}/series/{series}/instances",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/metadata",
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frame}",
        "/v1/kinds",
        "/v1/jobs",
        "/v1/jobs:batch",
        "/v1/jobs/{job_id}/retry",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/result",
        "/v1/jobs/{job_id}/artifacts/{name}",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/logs",
        "/v1/jobs/{job_id}/events",
        "/v1/events",
        "/v1/webhooks",
        "/v1/webhooks/{webhook_id}",
        "/v1/webhooks/{webhook_id}/test",
        "/v1/webhooks/{webhook_id}/deliveries",
        "/v1/session",
        "/v1/keys",
        "/v1/keys/{key_id}",
        "/v1/audit",
        "/livez",
        "/startupz",
        "/readyz",
        "/problems/{code}",
        "/metrics",
    }
    for path, methods in paths.items():
        for operation in methods.values():
            assert "default" in operation["responses"]
            for status, answer in operation["responses"].items():
                if status == "default" or status >= "4":
                    assert set(answer["content"]) == {_error_type(path, status)}
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(names) == len(set(names))
    assert "application/octet-stream" in paths["/v1/volumes"]["post"]["requestBody"]["content"]
    assert "application/problem+json" in paths["/livez"]["get"]["responses"]["default"]["content"]
