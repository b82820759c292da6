"""What RFC 9457 and `docs/design.md` ask of every error."""

from __future__ import annotations

from typing import Any

from httpx import Response

from service.addresses import shown_path


def assert_problem(answer: Response, status: int, code: str) -> dict[str, Any]:
    """The body of a well-formed problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"/problems/{code}"
    assert body["instance"] == shown_path(answer.request.url.path)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    assert isinstance(body["errors"], list)
    assert isinstance(body["retryable"], bool)
    return body
