"""Requests that are done once, however often they are sent: the header `Idempotency-Key`.

As draft-ietf-httpapi-idempotency-key-header-07 has it. The key is a structured field's string (RFC 9651,
section 3.3.3); the same characters without quotation marks are the same key, since many clients send it so.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel

from service.errors import ApiError
from storage.jobs import RequestKey

KEPT_S = 7 * 86_400.0
"""For so long a key is known."""
LONGEST_KEY = 255
REPLAYED = "Idempotency-Replayed"

_BARE = re.compile(r"[!#-+\--\[\]-~]+")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_CURE = (
    f"send 1 to {LONGEST_KEY} visible ASCII characters, such as a UUID, best in quotation marks: "
    'Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"'
)

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="a fresh key for each request; the same one to send the same request again",
        json_schema_extra={"pattern": r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--\[\]-~]{1,255})$'},
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
"""For the description of the API; `request_key` reads it."""


def request_key(request: Request, body: BaseModel | str | None = None) -> RequestKey | None:
    """The key of a request, with what tells it from others at the same address: its body's meaning.

    None without the header. Raises ApiError `invalid-idempotency-key`.
    """
    lines = request.headers.getlist("idempotency-key")
    if not lines:
        return None
    document = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return RequestKey(f"{request.method} {request.url.path}", _key(lines), digest)


def _key(lines: list[str]) -> str:
    if len(lines) > 1:
        raise _refusal("the header is there more than once")
    line = lines[0].strip(" \t")
    quoted = _QUOTED.fullmatch(line)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else line
    if quoted is None and not _BARE.fullmatch(key):
        raise _refusal("it is empty, or has characters that it may not have")
    if len(key) > LONGEST_KEY:
        raise _refusal(f"it has {len(key):,} characters")
    return key


def _refusal(cause: str) -> ApiError:
    detail = f"Idempotency-Key: {cause}; {_CURE}"
    return ApiError("invalid-idempotency-key", detail, errors=[("#Idempotency-Key", cause)])
