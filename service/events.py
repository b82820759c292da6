"""Server-sent events (WHATWG HTML, section 9.2): a stream that is dropped rather than buffered.

Of FastAPI's own module the wire format is used. Its generators are not: they begin with a 200 whatever they
find, their pings are comments, which no browser's page sees, and a client that does not read holds them.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import lru_cache
from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from service.schemas import ProgressView, Wire, timestamp
from service.watching import TooFarBehind, Watcher
from storage.changes import Cursor, Glance
from storage.errors import StorageError
from storage.jobs import JobState

PING_S = 15.0
RETRY_MS = 2000
"""A client that was cut off is asked to come back after this."""
PATIENCE_S = 20.0
"""A client that takes nothing for so long is dropped."""
LIFE_S = 3600.0
"""After about this long the client is let go, and comes back: to another process, perhaps."""
SKEW_S = 60.0
"""So far may the catalogue's clock be ahead of ours."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Welcome = Callable[[], Awaitable[bool]]
"""Whether the client may still listen: its key may have been revoked."""
_CURSOR = re.compile(r"(\d{1,12}\.\d{1,12})~((?:job_[0-9a-f-]{1,40})?)")


class JobEvent(Wire):
    """What is told of a job: where it stands, and nothing of what it is about."""

    id: str
    kind: str
    state: JobState
    attempt: int
    revision: int
    volume_id: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    progress: ProgressView | None
    error_code: str | None
    links: dict[str, str]


def job_event(glance: Glance) -> JobEvent:
    """A job's present state, as it is told to all who listen."""
    facts = {name: getattr(glance, name) for name in _SAME}
    address = f"/v1/jobs/{glance.id}"
    links = {"self": address}
    if glance.state is JobState.SUCCEEDED:
        links["result"] = f"{address}/result"
    return JobEvent(
        **facts,
        created_at=timestamp(glance.created_at) or "",
        started_at=timestamp(glance.started_at),
        ended_at=timestamp(glance.ended_at),
        progress=ProgressView(**vars(glance.progress)) if glance.progress else None,
        links=links,
    )


_SAME = ("id", "kind", "state", "attempt", "revision", "volume_id", "error_code")


async def of_job(
    watcher: Watcher, job: Glance, seen: int | None, welcome: Welcome
) -> AsyncGenerator[bytes, None]:
    """The events of one job from its present state on, unless that was seen; ends with the job."""
    yield format_sse_event(retry=RETRY_MS)
    if job.revision != seen:
        yield _of_change(job, None)
    clock = _Clock(welcome)
    with suppress(StorageError):
        while not (job.state.terminal or watcher.closed):
            glance = await watcher.watch(job.id, job.revision, clock.left_s)
            if glance is not None:
                yield _of_change(glance, job)
                job = glance
            if clock.due:
                if not await clock.go_on():
                    return
                yield _PING


async def of_project(
    watcher: Watcher, project_id: str, seen: str | None, welcome: Welcome
) -> AsyncGenerator[bytes, None]:
    """Every change of a project's jobs behind the event that was seen last, or from now on; without end.

    It begins with a `ping` that says where it begins, or with a `reset` where that is not known any more.
    """
    clock = _Clock(welcome)
    with suppress(StorageError):
        known = None if seen is None else cursor_of(seen)
        cursor = known or await watcher.present()
        yield _place("ping" if seen is None or known else "reset", cursor, retry=RETRY_MS)
        while not watcher.closed:
            try:
                news = await watcher.news(project_id, cursor, clock.left_s)
            except TooFarBehind:
                cursor = await watcher.present()
                yield _place("reset", cursor)
                continue
            if news:
                cursor = news[-1].cursor
                yield b"".join(map(_of_news, news))
            if clock.due:
                if not await clock.go_on():
                    return
                yield _PING


def cursor_text(cursor: Cursor) -> str:
    """A place in the order of changes as an event's id."""
    return f"{cursor.at!r}~{cursor.job_id}"


def cursor_of(text: str) -> Cursor | None:
    """What `cursor_text` made; None for any other text, and for a place in the future."""
    match = _CURSOR.fullmatch(text)
    if match is None or float(match[1]) > time.time() + SKEW_S:
        return None
    return Cursor(float(match[1]), match[2])


_PING = format_sse_event(event="ping", data_str="{}")


def _place(event: str, cursor: Cursor, *, retry: int | None = None) -> bytes:
    return format_sse_event(event=event, data_str="{}", id=cursor_text(cursor), retry=retry)


def _of_change(glance: Glance, before: Glance | None) -> bytes:
    return _encoded(glance, _name(glance, before), str(glance.revision))


def _name(glance: Glance, before: Glance | None) -> str:
    if glance.state.terminal:
        return "end"
    if before is None or (glance.state, glance.attempt) != (before.state, before.attempt):
        return "state"
    return "progress"


def _of_news(glance: Glance) -> bytes:
    return _encoded(glance, "job", cursor_text(glance.cursor))


@lru_cache(maxsize=256)
def _encoded(glance: Glance, event: str, event_id: str) -> bytes:
    """One event, encoded once for all who listen."""
    return format_sse_event(event=event, data_str=job_event(glance).model_dump_json(), id=event_id)


class _Clock:
    """When to ping, and when to let a client go."""

    def __init__(self, welcome: Welcome) -> None:
        self._welcome = welcome
        began = time.monotonic()
        self._ping_at = began + PING_S
        self._end_at = began + LIFE_S * random.uniform(0.9, 1.1)

    @property
    def left_s(self) -> float:
        """Seconds until the next ping."""
        return max(0.0, self._ping_at - time.monotonic())

    @property
    def due(self) -> bool:
        """Whether it is time for a ping."""
        return self.left_s == 0

    async def go_on(self) -> bool:
        """Whether the client may stay; the next ping is then due after another while."""
        self._ping_at += PING_S
        return time.monotonic() < self._end_at and await self._welcome()


class EventStream(StreamingResponse):
    """An endless answer. A client that takes nothing for `patience_s` is cut off, with what was meant for it.

    What is not sent yet is held by the server's socket alone: up to 64 KiB, and what the kernel takes.
    """

    media_type = "text/event-stream"

    def __init__(
        self, content: AsyncGenerator[bytes, None], watcher: Watcher, *, patience_s: float = PATIENCE_S
    ) -> None:
        super().__init__(content, headers=HEADERS)
        self._content, self._watcher, self._patience_s = content, watcher, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(self._patience_s):
                await send(message)

        async with aclosing(self._content):
            with self._watcher.listening():
                try:
                    await super().__call__(scope, receive, send_soon)
                except TimeoutError:
                    await _cut(scope)


async def _cut(scope: Scope) -> None:
    """Close the connection at once, where the server lets us: what is in its buffer would keep it open."""
    connection: dict[str, Any] = scope.get("extensions", {}).get("tomotrain.connection", {})
    if "abort" in connection:
        connection["abort"]()
        await asyncio.sleep(0)
