"""What the description of the API (OpenAPI 3.1) says of the answers about jobs."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from service.errors import MEDIA_TYPE
from service.schemas import JobView, Problem

Answers = dict[int | str, dict[str, Any]]

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
_TEXT = {"schema": {"type": "string"}}
HEADERS = {
    "Location": {"description": "the job's address", **_TEXT},
    "ETag": {"description": "for `If-None-Match`", **_TEXT},
    "Retry-After": {"description": "seconds, as long as the job is open", "schema": {"type": "integer"}},
    "Preference-Applied": {"description": "what of `Prefer` was followed (RFC 7240)", **_TEXT},
    "Idempotency-Replayed": {"description": "`true` where the request had been done before", **_TEXT},
}
REPLAY_HEADER = {"Idempotency-Replayed": HEADERS["Idempotency-Replayed"]}
_THE_JOB = {"job_id": "$response.body#/id"}
LINKS = {
    name: {"operationId": operation, "parameters": _THE_JOB}
    for name, operation in {
        "GetJob": "get_job",
        "GetResult": "get_result",
        "CancelJob": "cancel",
        "RetryJob": "retry",
        "RemoveJob": "remove_job",
    }.items()
}


def problems(*statuses: int) -> Answers:
    """These errors, as RFC 9457 has them."""
    return {status: {"description": HTTPStatus(status).phrase, "content": _PROBLEM} for status in statuses}


def a_job(described: Mapping[int, str]) -> Answers:
    """A job, with where it leads to, under these statuses."""
    return {
        status: {"model": JobView, "description": description, "headers": HEADERS, "links": LINKS}
        for status, description in described.items()
    }
