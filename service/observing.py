"""The layer that sees every request end, and tells those who count or write it down.

Nothing of what a request says goes on from here but its method and its route's template: addresses, query
strings, headers and names of files may name a patient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
NO_ROUTE = "none"
CUT = 499
"""Status of a request whose client went away before an answer began."""


@dataclass(frozen=True)
class Served:
    """A request that has ended. `method` and `route` are of small sets; `received` and `sent` are bytes of
    bodies; `state` holds what inner layers found out.
    """

    method: str
    route: str
    status: int
    seconds: float
    received: int
    sent: int
    state: dict[str, Any]


Observer = Callable[[Served], None]


class Observing:
    """ASGI layer around the whole application."""

    def __init__(self, app: ASGIApp, *, observers: Sequence[Observer]) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        began, wires = time.perf_counter(), _Wires(receive, send)
        try:
            await self._app(scope, wires.receive, wires.send)
        except BaseException:
            wires.status = wires.status or 500
            raise
        finally:
            served = Served(
                method=scope["method"] if scope["method"] in METHODS else OTHER,
                route=_template(scope),
                status=wires.status or CUT,
                seconds=time.perf_counter() - began,
                received=wires.received,
                sent=wires.sent,
                state=scope["state"],
            )
            for observer in self._observers:
                observer(served)


class _Wires:
    """`receive` and `send` that count."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = self.received = self.sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
        await self._send(message)


def _template(scope: Scope) -> str:
    """The path of the route that was found, with its parameters' names in it."""
    return str(getattr(scope.get("route"), "path", NO_ROUTE))
