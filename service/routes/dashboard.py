"""The dashboard: one page, one module, one style sheet, all from here and drawn from the API."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response

from service.conditional import file_answer, strong_etag

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).resolve().parents[1] / "dashboard"
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    "index.html": "text/html",
    "dashboard.js": "text/javascript",
    "sign_in.js": "text/javascript",
    "dashboard.css": "text/css",
    "favicon.svg": "image/svg+xml",
    "favicon.ico": "image/x-icon",
}


@router.get("/")
def page(request: Request) -> Response:
    """The page."""
    return _asset(request, "index.html")


@router.get("/favicon.ico")
def icon(request: Request) -> Response:
    """The icon, where browsers look for it unasked."""
    return _asset(request, "favicon.ico")


@router.get("/dashboard/{name}")
def asset(
    request: Request, name: Literal["dashboard.js", "dashboard.css", "sign_in.js", "favicon.svg"]
) -> Response:
    """What the page is made of."""
    return _asset(request, name)


def _asset(request: Request, name: str) -> Response:
    path = _FOLDER / name
    facts = path.stat()
    return file_answer(
        request,
        path,
        etag=strong_etag(name, facts.st_mtime_ns, facts.st_size),
        media_type=_MEDIA_TYPES[name],
        headers={"Cache-Control": "no-cache", "Content-Security-Policy": _CSP},
    )
