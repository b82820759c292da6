"""The outermost layer: request ids, safe headers, and the promise that every error is a problem."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import request_log
from service.addresses import shown_path
from service.dicomweb.media import DICOM_JSON
from service.errors import MEDIA_TYPE, code_of_status, problem_response

log = logging.getLogger("tomotrain.service")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Edge:
    """ASGI layer around the whole application.

    Gives each request an id (the client's `X-Request-Id` where it is plain), answers unexpected errors
    and the framework's own plain-text errors with a problem, and refuses writes that another origin's page
    sends through the user's browser (Fetch Metadata, or `Origin` in browsers without it). Another port of
    this machine is another origin: a notebook server, for one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        request_log.bind(request_id)
        await self._answer(Request(scope), receive, _Finishing(send, request_id))

    async def _answer(self, request: Request, receive: Receive, send: _Finishing) -> None:
        refusal = _refusal(request)
        if refusal is not None:
            await refusal(request.scope, receive, send)
            return
        translate = _Translating(send)
        try:
            await self._app(request.scope, receive, translate)
        except Exception:
            if send.started:
                raise
            log.exception("request %s failed", request.state.request_id)
            detail = "an unexpected error; the log names it by this request_id"
            await problem_response(request, "internal-error", detail)(request.scope, receive, send)
        else:
            if translate.refused is not None:
                await translate.problem(request)(request.scope, receive, send)


class _Finishing:
    """A `send` that adds the headers every answer carries."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


class _Translating:
    """A `send` that holds back an error which is no problem+json, to be said as a problem."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.refused: Message | None = None
        self._text = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _unproblematic(message):
            self.refused = message
        elif self.refused is None:
            await self._send(message)
        else:
            self._text += message.get("body", b"")

    def problem(self, request: Request) -> Response:
        assert self.refused is not None
        status = self.refused["status"]
        headers = Headers(raw=self.refused["headers"])
        kept = {name: headers[name] for name in ("content-range", "allow", "retry-after") if name in headers}
        told = f"{request.method} {shown_path(request.url.path)} is refused"
        detail = self._text.decode("utf-8", "replace") or told
        return problem_response(request, code_of_status(status), detail, headers=kept)


class VolumeCors:
    """Lets pages of the named origins read volumes, and nothing else."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._open = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD"),
            allow_headers=("Range", "If-None-Match"),
            expose_headers=("Content-Range", "Content-Length", "ETag"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        path = scope.get("path", "")
        chosen = self._open if path.startswith("/v1/volumes/") and "/zarr/" in path else self._app
        await chosen(scope, receive, send)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _refusal(request: Request) -> Response | None:
    """The answer to a request that the application is not to see."""
    if request.scope["path"].endswith("\n"):  # which the router's patterns would not see
        return problem_response(
            request, "not-found", "there is nothing at addresses that end in a line break"
        )
    if request.method not in _SAFE_METHODS and not _same_origin(request.headers):
        return problem_response(request, "cross-site", "send this request from this service's own pages")
    return None


def _same_origin(headers: Headers) -> bool:
    """Whether no browser says that the request is from a page of another origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _unproblematic(message: Message) -> bool:
    media_type = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] >= 400 and not media_type.startswith((MEDIA_TYPE, DICOM_JSON))
