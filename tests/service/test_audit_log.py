"""The audit log over HTTP and by command: one's own project's, whole, provable, and valid FHIR."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from fhir.resources.R4B.bundle import Bundle
from house import House, Library, open_house
from problem_checks import assert_problem
from sqlalchemy import delete, update
from typer.testing import CliRunner

from service.cli import app
from storage.access import Access, Scope
from storage.audit import AuditLog
from storage.tables import audit

FHIR = {"Accept": "application/fhir+json"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[House]:
    """A service that asks for keys, with 25 records of two projects and of nobody."""
    with open_house(tmp_path, authentication=True) as house:
        access, log = Access(house.catalogue.database), AuditLog(house.catalogue.database)
        access.put_project("ward")
        for number in range(25):
            log.append(
                actor="key:0",
                action=("view-volume", "create-volume", "delete-job", "cancel")[number % 4],
                subject=f"/v1/volumes/vol_{number}",
                outcome=(200, 404, 500)[number % 3],
                request_id=f"request-{number}",
                project_id=("default", "ward", None)[number % 3],
            )
        yield house


def key(house: House, *scopes: Scope, project: str = "default") -> dict[str, str]:
    made = Access(house.catalogue.database).make_key("key", scopes, project_id=project)
    return {"Authorization": f"Bearer {made.secret}"}


def pages(house: House, headers: dict[str, str], size: int = 4) -> list[dict[str, Any]]:
    """Every record, by following the links."""
    found: list[dict[str, Any]] = []
    address = f"/v1/audit?page_size={size}"
    while address:
        answer = house.http.get(address, headers=headers)
        assert answer.status_code == 200, answer.text
        found += answer.json()["records"]
        assert (answer.json()["next_page_token"] is None) == ("next" not in answer.links)
        address = answer.links.get("next", {}).get("url", "")
    return found


def test_a_project_sees_its_own_records_and_the_operator_all(guarded: House) -> None:
    own = pages(guarded, key(guarded, Scope.AUDIT_READ, project="ward"))
    assert {record["project_id"] for record in own} == {"ward"}
    assert [record["sequence"] for record in own] == [23, 20, 17, 14, 11, 8, 5, 2]
    every = pages(guarded, key(guarded, Scope.AUDIT_READ, Scope.ADMIN))
    assert [record["sequence"] for record in every] == list(range(len(every), 0, -1))
    assert {record["project_id"] for record in every} == {"default", "ward", None}
    assert every[-1]["at"].endswith("Z")
    assert len(every[-1]["hash"]) == 64


def test_who_may_not_read_it_is_refused(guarded: House) -> None:
    assert_problem(guarded.http.get("/v1/audit"), 401, "no-credentials")
    headers = key(guarded, Scope.JOBS_READ, Scope.ADMIN)
    assert_problem(guarded.http.get("/v1/audit", headers=headers), 403, "missing-scope")


@pytest.mark.parametrize("token", ["x", "AAAA", "LTE=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "MA==", "%00", "é"])
def test_page_tokens_that_were_not_given_out_are_refused(library: Library, token: str) -> None:
    answer = library.http.get("/v1/audit", params={"page_token": token})
    assert_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("size", ["0", "201", "x"])
def test_pages_of_no_size_are_refused(library: Library, size: str) -> None:
    assert_problem(library.http.get(f"/v1/audit?page_size={size}"), 422, "invalid-request")


def test_it_is_fhir_where_that_is_asked_for(guarded: House) -> None:
    headers = {**key(guarded, Scope.AUDIT_READ, Scope.ADMIN), **FHIR}
    answer = guarded.http.get("/v1/audit?page_size=10", headers=headers)
    assert answer.headers["content-type"] == "application/fhir+json"
    assert "next" in answer.links
    bundle = Bundle.model_validate_json(answer.text)
    events = [entry.resource for entry in bundle.entry]
    assert len(events) == 10
    assert all(isinstance(event, AuditEvent) for event in events)
    every = {record["sequence"]: record for record in pages(guarded, headers={**headers, "Accept": "*/*"})}
    for event in events:
        record = every[int(event.id.removeprefix("audit-"))]
        code = {"view": "R", "create": "C", "delete": "D", "cancel": "E"}.get(record["action"].split("-")[0])
        assert event.action == (code or event.action)
        assert event.outcome == {2: "0", 4: "4", 5: "8"}[record["outcome"] // 100]
        assert event.agent[0].who.identifier.value == record["actor"]
        assert event.entity[0].what.identifier.value == record["subject"]
        assert record["hash"] in [detail.valueString for detail in event.entity[0].detail]


def run(house: House, *arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["audit", *arguments, "--data-root", str(house.root)])
    return answer.exit_code, answer.stdout


def test_the_command_proves_the_chain_and_finds_every_kind_of_change(guarded: House) -> None:
    status, kept = run(guarded, "verify")
    assert status == 0
    assert kept.startswith("25:")
    assert run(guarded, "verify", "--kept", kept.strip())[0] == 0
    database = guarded.catalogue.database
    with database.writing() as connection:
        connection.execute(delete(audit).where(audit.c.sequence > 20))
    assert run(guarded, "verify")[0] == 0
    assert run(guarded, "verify", "--kept", kept.strip())[0] == 1
    with database.writing() as connection:
        connection.execute(update(audit).where(audit.c.sequence == 7).values(outcome=201))
    assert run(guarded, "verify")[0] == 1
    assert run(guarded, "verify", "--kept", "x")[0] != 0


def test_the_command_exports_every_record_as_lines_and_as_fhir(guarded: House) -> None:
    status, text = run(guarded, "export")
    assert status == 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, 26))
    records = AuditLog(guarded.catalogue.database).records(limit=100)
    assert [line["hash"] for line in lines] == [record.hash for record in reversed(records)]
    _, text = run(guarded, "export", "--as", "fhir")
    assert len(Bundle.model_validate_json(text).entry) == 25
