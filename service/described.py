"""What the description of the API (OpenAPI 3.1) says of answers, and of headers that routes read by hand."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from service.errors import MEDIA_TYPE
from service.schemas import JobView, Problem

Answers = dict[int | str, dict[str, Any]]
Described = dict[str, Any]

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


UNCHANGED: Answers = {304: {"description": "it is as the client knows it (`If-None-Match`)"}}


def header(name: str, description: str, *, pattern: str | None = None, required: bool = False) -> Described:
    """A header of a request that the route reads by itself."""
    schema = {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def reads(*headers: Described) -> Described:
    """What a route's `openapi_extra` says of such headers."""
    return {"parameters": list(headers)}


IF_NONE_MATCH = header("If-None-Match", "the `ETag` of what the client has: 304 where it is still that")
RANGE = header("Range", "`bytes=0-1023`: a part alone (RFC 9110)")
CONDITIONAL = reads(IF_NONE_MATCH)
PARTIAL = reads(IF_NONE_MATCH, RANGE)


def a_file(description: str, *media_types: str) -> Answers:
    """Bytes that are sent whole or by `Range`."""
    content: Described = {media_type: {} for media_type in media_types}
    return {
        200: {"description": description, "content": content},
        206: {"description": "the ranges asked for", "content": {**content, "multipart/byteranges": {}}},
        **UNCHANGED,
    }
