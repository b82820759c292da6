"""What OpenAPI says of jobs: every operation, status and link that there is."""

from __future__ import annotations

from typing import Any

import pytest
from house import House

OPERATIONS = {
    "submit": {"200", "202", "400", "401", "403", "404", "409", "410", "413", "422", "429", "503", "507"},
    "submit_batch": {"202", "400", "401", "403", "409", "410", "413", "422", "429", "503", "507"},
    "retry": {"200", "202", "400", "401", "403", "404", "409", "410", "413", "422", "429", "503", "507"},
    "list_jobs": {"200", "401", "403", "422", "429", "503"},
    "get_job": {"200", "304", "401", "403", "404", "410", "422", "429", "503"},
    "remove_job": {"204", "401", "403", "404", "409", "410", "429", "503"},
    "cancel": {"200", "202", "401", "403", "404", "410", "429", "503"},
}


@pytest.fixture(scope="module")
def operations(desk: House) -> dict[str, dict[str, Any]]:
    """Every operation by its id."""
    paths = desk.http.get("/openapi.json").json()["paths"]
    return {
        operation["operationId"]: operation
        for path in paths.values()
        for method, operation in path.items()
        if method != "parameters"
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_status_is_described(operations: dict[str, dict[str, Any]], name: str) -> None:
    responses = operations[name]["responses"]
    assert OPERATIONS[name] <= set(responses)
    for status, response in responses.items():
        if status[0] in "45":
            assert list(response["content"]) == ["application/problem+json"], (name, status)


def test_every_link_leads_to_an_operation(operations: dict[str, dict[str, Any]]) -> None:
    links = {
        link["operationId"]
        for name in OPERATIONS
        for response in operations[name]["responses"].values()
        for link in response.get("links", {}).values()
    }
    assert links == {"get_job", "get_result", "cancel", "retry", "remove_job"}
    assert links <= set(operations)
    for name in links:
        assert "job_id" in {parameter["name"] for parameter in operations[name]["parameters"]}


def test_headers_that_are_understood_are_described(operations: dict[str, dict[str, Any]]) -> None:
    for name, headers in (
        ("submit", {"Idempotency-Key", "Prefer"}),
        ("retry", {"Idempotency-Key", "Prefer"}),
        ("submit_batch", {"Idempotency-Key"}),
    ):
        told = {part["name"] for part in operations[name]["parameters"] if part["in"] == "header"}
        assert told == headers
