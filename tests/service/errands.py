"""Jobs that need no scan: for tests of how jobs are submitted, found again and forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from house import EMBED, INTERNAL, House
from httpx import Response

from storage.jobs import Queue

ERRAND = replace(EMBED, name="errand", needs_volume=False)
MODELLING = replace(
    ERRAND,
    name="ask",
    queue=Queue.INTERACTIVE,
    parameters_schema={"type": "object", "properties": {"model": {"type": "string"}}},
)
FAULT = {"code": "over-budget", "detail": "too large", "retryable": False}


def offer(house: House) -> House:
    """A house whose worker does errands."""
    house.catalogue.announce("worker", [EMBED, INTERNAL, ERRAND, MODELLING], "cuda:0")
    return house


def send(house: House, *, headers: dict[str, str] | None = None, **more: object) -> Response:
    """Ask for an errand."""
    return house.http.post("/v1/jobs", json={"kind": "errand", **more}, headers=headers)


def errand(house: House, **more: object) -> dict[str, Any]:
    """An errand that was taken."""
    answer = send(house, **more)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


def fail(house: House, job_id: str) -> None:
    """Let a job fail for good."""
    job = house.catalogue.claim(job_id, "worker", 60)
    assert job is not None
    house.catalogue.fail(job.id, job.attempt, FAULT)


def listed(house: House, query: str = "") -> list[str]:
    """Ids of the jobs of a list."""
    answer = house.http.get(f"/v1/jobs?{query}")
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]
