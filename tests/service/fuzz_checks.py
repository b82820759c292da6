"""What schemathesis checks of every answer beside what it does by itself, and how it sends some bodies.

Errors are problems as `docs/design.md` has them, no success is left to the description's `default`, and what
fits the description is not refused as something that does not.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis

from service.schemas import UNSTORABLE_WORDS

NOT_UNDERSTOOD = frozenset(
    {
        "bad-request",
        "invalid-digest",
        "invalid-idempotency-key",
        "invalid-request",
        "tus-version",
        "unsupported-media-type",
    }
)
"""Codes of requests that do not fit their description."""
UNDESCRIBED = {
    "StudyInstanceUID": "a UID has at most 64 characters",
    "SeriesInstanceUID": "a UID has at most 64 characters",
    "page_token": "only those that were given out are taken",
    "label": "a label has a colon",
    "volume_id": "some kinds of jobs need one",
    "size": "that of the manifest's objects, where there is one",
    "url": "it leads to a host that has an address",
    "manifest": "an upload that began without one ends with one, or with its digest",
}
"""What the description cannot say of parameters, or says in words."""
IN_WORDS = (UNSTORABLE_WORDS.lower(), "with each name once", "range header")
"""Nor can it say this of texts and names; and what is no `Range` is refused or ignored (RFC 9110, 14.2)."""
EDGE, RELATED = "edge", "multipart/related"
STORING = ("store_instances", "store_instances_of_study")


@schemathesis.hook("before_call")
def keep_the_key(context: Any, case: Any, kwargs: Any) -> None:
    """Revoke any key but the one that the requests are sent with."""
    sent = case.operation.schema.config.headers_for(operation=case.operation)["Authorization"]
    if (case.path_parameters or {}).get("key_id") == sent.split("_")[1]:
        case.path_parameters["key_id"] = "0" * 16


@schemathesis.hook("before_call")
def name_the_edge(context: Any, case: Any, kwargs: Any) -> None:
    """Say of a body in parts where they begin. A request without credentials gets them back thereby."""
    if case.media_type == RELATED:
        case.headers["Content-Type"] = f'{RELATED}; type="application/dicom"; boundary={EDGE}'


@schemathesis.serializer("application/offset+octet-stream")
def as_bytes(context: Any, value: Any) -> Any:
    """The body of a request of tus."""
    return value if isinstance(value, (bytes, str)) else json.dumps(value)


@schemathesis.serializer(RELATED)
def in_one_part(context: Any, value: Any) -> bytes:
    """The body of a request of STOW-RS."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    head, end = f"--{EDGE}\r\nContent-Type: application/dicom\r\n\r\n", f"\r\n--{EDGE}--"
    return head.encode() + content + end.encode()


@schemathesis.check
def successes_are_described(context: Any, response: Any, case: Any) -> None:
    """`default` stands for errors alone."""
    documented = case.operation.definition.raw["responses"]
    if case.operation.method.upper() == response.request.method and response.status_code < 400:
        assert str(response.status_code) in documented, f"{response.status_code} is not described"


@schemathesis.check
def errors_are_problems(context: Any, response: Any, case: Any) -> None:
    """RFC 9457, as `docs/design.md` has it."""
    if response.status_code < 400:
        return
    if case.operation.definition.raw["operationId"] in STORING and response.status_code == 409:
        return  # PS3.18 10.5.3: the answer's document says what was wrong with each instance
    assert response.headers["content-type"] == ["application/problem+json"]
    if response.request.method == "HEAD":
        return
    body = response.json()
    assert body["status"] == response.status_code
    assert body["type"] == f"/problems/{body['code']}"
    assert body["request_id"] == response.headers["x-request-id"][0]
    assert body["title"]
    assert body["detail"]


@schemathesis.check
def what_fits_is_understood(context: Any, response: Any, case: Any) -> None:
    """Whatever fits the description is at most refused for what it asks for."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    if response.request.method in ("HEAD", "OPTIONS") or response.status_code == 405:
        return
    if response.headers["content-type"] != ["application/problem+json"]:
        return
    body = response.json()
    told = {error["pointer"].strip("#/") for error in body["errors"]}
    excused = told and told <= UNDESCRIBED.keys()
    in_words = any(words in body["detail"].lower() for words in IN_WORDS)
    if body["code"] in NOT_UNDERSTOOD and not (excused or in_words):
        raise AssertionError(f"refused with {body['code']}: {body['detail'][:200]}")
