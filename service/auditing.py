"""Records every change and every refused sender in the audit log, and who looked at which scan or result.

A record is written before its answer is sent. Where the log takes nothing the answer goes out all the same,
since what it tells has been done, and the service's own log says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.addresses import shown_path
from service.identity import Principal
from storage.audit import AuditLog

log = logging.getLogger("tomotrain.service")

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
WATCHED = {
    "get_slice": "view-volume",
    "get_zarr_object": "view-volume",
    "retrieve_study": "view-volume",
    "retrieve_series": "view-volume",
    "retrieve_instance": "view-volume",
    "retrieve_frame": "view-volume",
    "get_result": "view-result",
    "get_artifact": "view-result",
    "get_logs": "view-result",
}
"""What is recorded of reading, by the name of the route."""
PIECE = "put-object"
"""Of an upload, which may have many thousands; its completion is a record of its own."""
UNKNOWN = "unknown"
MOST_SEEN = 10_000


class Auditing:
    """ASGI layer around the routes: by the time of the answer they have recognised the sender."""

    def __init__(self, app: ASGIApp, *, audit: AuditLog, reads_s: float) -> None:
        self._app, self._audit = app, audit
        self._seen = _Lately(reads_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._record(request, message["status"])
            await send(message)

        await self._app(scope, receive, recording)

    async def _record(self, request: Request, status: int) -> None:
        principal: Principal | None = getattr(request.state, "principal", None)
        actor = UNKNOWN if principal is None else principal.name
        subject = getattr(request.state, "subject", None) or shown_path(request.url.path)
        action = _action(request, status)
        if action is None:
            return
        if action.startswith("view-") or (action == PIECE and status < 400):
            subject = _resource(subject)
            if self._seen.lately(f"{actor} {action} {subject}"):
                return
        try:
            await run_in_threadpool(
                self._audit.append,
                actor=actor,
                action=action,
                subject=subject,
                outcome=status,
                request_id=request.state.request_id,
                project_id=None if principal is None else principal.project_id,
            )
        except Exception:  # whatever the database raises: the answer tells what has been done
            log.exception("not in the audit log: %s %s %s %d", actor, action, subject, status)


def _action(request: Request, status: int) -> str | None:
    """What is recorded; None for what is not."""
    route = request.scope.get("route")
    name = str(getattr(route, "name", "request")).replace("_", "-")
    if request.method not in SAFE or status in (401, 403, 429):
        return name
    return WATCHED.get(str(getattr(route, "name", ""))) if status < 400 else None


def _resource(path: str) -> str:
    """`/v1/volumes/{id}`, or `/dicomweb/studies/{uid}`, of an address below it."""
    return "/".join(path.split("/")[:4])


class _Lately:
    """What was seen within the last so many seconds, in this process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._at: OrderedDict[str, float] = OrderedDict()

    def lately(self, what: str) -> bool:
        """Whether it was; if not, it is now."""
        moment = time.monotonic()
        with self._lock:
            seen = self._at.get(what)
            if seen is not None and moment - seen < self._seconds:
                return True
            self._at[what] = moment
            self._at.move_to_end(what)
            while len(self._at) > MOST_SEEN:
                self._at.popitem(last=False)
        return False
