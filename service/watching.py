"""Waits for jobs to change, for all who wait: one watcher in a process asks the catalogue for all of them.

It asks a few times in a second while somebody waits, and not at all while nobody does. Nothing is kept for
a listener but its place: a slow one finds the present state, and misses what was in between.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from storage.changes import Changes, Cursor, Glance
from storage.errors import MissingJob, StorageError

log = logging.getLogger("tomotrain.service")
T = TypeVar("T")

EVERY_S = 0.25
AWAY_S = 2.0
"""Pause after the catalogue did not answer."""
MOST_AT_ONCE = 500
"""So many changes are asked for at once. Who has missed more is better served by reading the jobs anew."""
MOST_RECENT = 4 * MOST_AT_ONCE
"""So many are kept for all listeners together; who is further behind asks the catalogue."""


SLICE = 20
"""So many listeners are woken at once: what each of them sends would hold up other requests together."""


class TooFarBehind(Exception):
    """More has changed since a cursor than is told one by one."""


@dataclass(frozen=True, eq=False)
class _Waiter:
    """Somebody who waits for a job to be beyond a revision."""

    after_revision: int
    news: asyncio.Future[Glance | None]

    def tell(self, glance: Glance | None) -> None:
        if not self.news.done():
            self.news.set_result(glance)

    def fail(self, error: Exception) -> None:
        if not self.news.done():
            self.news.set_exception(error)


class Watcher:
    """To be used in one event loop. `rounds` counts how often the catalogue was asked."""

    def __init__(self, changes: Changes, *, every_s: float = EVERY_S) -> None:
        self._changes, self._every_s = changes, every_s
        self._waiters: dict[str, set[_Waiter]] = {}
        self._readers = 0
        self._memory = _Memory()
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        self.listeners = 0
        self.rounds = 0

    async def watch(self, job_id: str, after_revision: int, timeout_s: float) -> Glance | None:
        """The job as soon as it is beyond a revision; None where it is not so within this time, or where the
        service is stopping (`closed`). Raises MissingJob.
        """
        if self.closed:
            return None
        waiter = _Waiter(after_revision, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(job_id, set()).add(waiter)
        self._begin()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.news
        except TimeoutError:
            return None
        finally:
            self._forget(job_id, waiter)

    async def present(self) -> Cursor:
        """Behind every change that there has been."""
        return await asyncio.to_thread(self._changes.last)

    async def news(self, project_id: str, after: Cursor, timeout_s: float) -> list[Glance]:
        """What has changed in a project since, oldest first, as soon as there is something; nothing where
        there is none within this time, or where the service is stopping. Raises TooFarBehind.
        """
        self._readers += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self._news(project_id, after)
        except TimeoutError:
            return []
        finally:
            self._readers -= 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count a listener."""
        self.listeners += 1
        try:
            yield
        finally:
            self.listeners -= 1

    def close(self) -> None:
        """Let nobody wait any longer. Harmless when it is closed already."""
        self.closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.tell(None)
        self._memory.wake()

    async def stop(self) -> None:
        """Close, and return when the catalogue is not asked any more."""
        self.close()
        if self._task is not None:
            await asyncio.wait([self._task])

    # Those who wait

    def _forget(self, job_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters[job_id]
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[job_id]

    async def _news(self, project_id: str, after: Cursor) -> list[Glance]:
        self._begin()
        if self._memory.head is None:
            self._memory.begin_at(await self.present())
        found = self._memory.since(project_id, after)
        if found is None:
            found = await self._from_catalogue(project_id, after)
        while not (found or self.closed):
            await self._memory.grown()
            found = self._memory.since(project_id, max(after, self._memory.floor))
        return found or []

    async def _from_catalogue(self, project_id: str, after: Cursor) -> list[Glance]:
        found = await asyncio.to_thread(
            self._changes.since, after, project_id=project_id, limit=MOST_AT_ONCE + 1
        )
        if len(found) > MOST_AT_ONCE:
            raise TooFarBehind
        return found

    # The one who asks

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Ask while somebody waits."""
        while not self.closed and (self._waiters or self._readers):
            await asyncio.sleep(self._every_s)
            try:
                await self._round()
            except StorageError as error:
                log.warning("the watcher cannot see the jobs: %s", error)
                await asyncio.sleep(AWAY_S)
        self._memory = _Memory()

    async def _round(self) -> None:
        self.rounds += 1
        if not self._readers:
            self._memory = _Memory()
        watched, memory = list(self._waiters), self._memory
        glances, fresh = await asyncio.to_thread(self._ask, watched, memory.head)
        await self._hand_out(watched, {glance.id: glance for glance in glances})
        await memory.add(fresh)

    def _ask(self, watched: Collection[str], head: Cursor | None) -> tuple[list[Glance], list[Glance]]:
        """The jobs that are watched, and all that have changed behind `head`; in a thread."""
        glances = self._changes.glances(watched) if watched else []
        fresh = [] if head is None else self._changes.since(head, limit=MOST_AT_ONCE)
        return glances, fresh

    async def _hand_out(self, watched: Collection[str], found: dict[str, Glance]) -> None:
        waiters = [(waiter, job_id) for job_id in watched for waiter in self._waiters.get(job_id, ())]
        async for waiter, job_id in _slowly(waiters):
            glance = found.get(job_id)
            if glance is None:
                waiter.fail(MissingJob(job_id))
            elif glance.revision > waiter.after_revision:
                waiter.tell(glance)


class _Memory:
    """The latest changes, of all projects, behind `floor` and up to `head`; nothing before it has begun."""

    def __init__(self) -> None:
        self.floor = Cursor(0.0, "")
        self.head: Cursor | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._recent: list[Glance] = []

    def begin_at(self, head: Cursor) -> None:
        """Remember what comes behind `head`; harmless where that has begun."""
        if self.head is None:
            self.floor = self.head = head

    def since(self, project_id: str, after: Cursor) -> list[Glance] | None:
        """What has changed in a project; None where it is not remembered that far back."""
        if self.head is None or after < self.floor:
            return None
        start = bisect_right(self._recent, after, key=lambda glance: glance.cursor)
        return [glance for glance in self._recent[start:] if glance.project_id == project_id]

    async def add(self, fresh: list[Glance]) -> None:
        """Remember, and wake those who wait."""
        if not fresh:
            return
        self._recent += fresh
        self.head = fresh[-1].cursor
        if len(self._recent) > MOST_RECENT:
            self.floor = self._recent[-MOST_RECENT - 1].cursor
            del self._recent[:-MOST_RECENT]
        async for woken in _slowly(list(self._waiting)):
            _wake(woken)

    async def grown(self) -> None:
        """Wait until something was added, or all were woken."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)

    def wake(self) -> None:
        """Let those who wait look again, all at once."""
        for woken in self._waiting:
            _wake(woken)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


async def _slowly(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, with turns for everybody else between some and some."""
    for number, item in enumerate(items, 1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)
