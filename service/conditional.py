"""Conditional answers (RFC 9110, section 13) and pages (AIP-158, RFC 8288)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from fastapi import Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.errors import ApiError

_TOKEN = re.compile(r"[a-z]{1,8}_[0-9a-f-]{1,40}")

PageSize = Annotated[int, Query(ge=1, le=200, description="most entries on a page")]
PageToken = Annotated[str | None, Query(max_length=200, description="`next_page_token` of the page before")]


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


def strong_etag(*parts: object) -> str:
    """A strong entity tag made of what determines the bytes."""
    text = "\0".join(str(part) for part in parts)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str) -> bool:
    """Whether the client has this representation already (weak comparison, as for GET)."""
    given = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return "*" in tags or etag in tags


def not_modified(etag: str, headers: Mapping[str, str] | None = None) -> Response:
    """304, with the headers that the 200 would have had to update a cache."""
    return Response(status_code=304, headers={**(headers or {}), "ETag": etag})


def json_answer(
    request: Request,
    document: BaseModel,
    *,
    etag: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The document with a strong ETag, or 304 when the client has it. Without a tag its bytes are hashed."""
    body = document.model_dump_json()
    tag = etag or strong_etag(body)
    kept = {"Cache-Control": "private, no-cache", **(headers or {})}
    if unchanged(request, tag):
        return not_modified(tag, kept)
    return Response(body, media_type="application/json", headers={**kept, "ETag": tag})


def file_answer(
    request: Request,
    path: Path,
    *,
    etag: str,
    media_type: str,
    headers: Mapping[str, str],
    filename: str | None = None,
) -> Response:
    """A file, or the ranges of it that were asked for, or 304 when the client has it."""
    if unchanged(request, etag):
        return not_modified(etag, headers)
    return FileResponse(
        path,
        headers={**headers, "ETag": etag},
        media_type=media_type,
        filename=filename,
        stat_result=path.stat(),
    )


def decode_token(token: str | None) -> str | None:
    """The id after which a page goes on. Raises ApiError for a token that was not given out here."""
    if token is None:
        return None
    try:
        last = base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError:
        last = ""
    if not _TOKEN.fullmatch(last):
        detail = "page_token: use next_page_token of the page before, unchanged"
        raise ApiError("invalid-request", detail, errors=[("#page_token", "not a page token")])
    return last


def page(rows: Sequence[T], page_size: int) -> tuple[Sequence[T], str | None]:
    """The rows of a page, and the token of the next, from up to `page_size + 1` rows."""
    shown = rows[:page_size]
    if len(rows) <= page_size:
        return shown, None
    return shown, base64.urlsafe_b64encode(shown[-1].id.encode()).decode()


def next_link(request: Request, token: str | None) -> dict[str, str]:
    """The `Link` header that leads to the next page, if there is one."""
    if token is None:
        return {}
    address = request.url.include_query_params(page_token=token)
    return {"Link": f'<{address.path}?{address.query}>; rel="next"'}
