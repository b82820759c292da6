"""Where a job stands, beside what its row says: its place in the queue, its worker's device, its last day.

Places are told from a look at the whole queue that is at most `FRESH_S` old: one look serves all who ask.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heapreplace
from typing import Generic, TypeVar

from storage.catalogue import Catalogue
from storage.jobs import KEPT_ARTIFACT, Job, JobState, Line, Queue

FRESH_S = 1.0
LOOKING_SHARE = 50
"""A look that takes long is good for so many times as long."""


@dataclass(frozen=True)
class Place:
    """`ahead` jobs of the queue were submitted earlier and wait too, `LONGEST_LINE` standing for more.

    `eta_s` is an estimate of the seconds until a worker begins it; None where nobody can tell.
    """

    ahead: int
    eta_s: float | None


@dataclass(frozen=True)
class Standing:
    """What a job's view tells beside its row. `expires_at` is in seconds since 1970 (UTC)."""

    place: Place | None = None
    device: str | None = None
    expires_at: float | None = None


UNKNOWN = Standing()


class Standings:
    """Tells the standing of jobs; safe for threads."""

    def __init__(
        self, catalogue: Catalogue, *, worker_fresh_s: float, kept_s: float, fresh_s: float = FRESH_S
    ) -> None:
        self._kept_s = kept_s
        self._waits = {
            queue: _Lately(partial(_Wait.seen, catalogue, queue, worker_fresh_s), fresh_s) for queue in Queue
        }
        self._devices = _Lately(lambda: {known.name: known.device for known in catalogue.workers()}, fresh_s)

    def of(self, job: Job) -> Standing:
        """The standing of a job."""
        waits = job.state in (JobState.WAITING, JobState.QUEUED)
        return Standing(
            place=self._waits[job.queue].seen().place(job.id) if waits else None,
            device=None if job.worker is None else self._devices.seen().get(job.worker),
            expires_at=None if job.ended_at is None or _is_model(job) else job.ended_at + self._kept_s,
        )

    def forget(self) -> None:
        """Look anew at the next question."""
        for wait in self._waits.values():
            wait.forget()
        self._devices.forget()


T = TypeVar("T")


class _Lately(Generic[T]):
    """What somebody saw `fresh_s` ago at most, or a little more: while one looks anew, the others go on with
    what they know, and nobody looks for more than a fiftieth of the time.
    """

    def __init__(self, look: Callable[[], T], fresh_s: float) -> None:
        self._look, self._fresh_s = look, fresh_s
        self._lock = threading.Lock()
        self._seen: T | None = None
        self._good_until = float("-inf")

    def seen(self) -> T:
        """As it is, or was a moment ago."""
        seen = self._seen
        if seen is not None and time.monotonic() < self._good_until:
            return seen
        if not self._lock.acquire(blocking=seen is None):
            assert seen is not None
            return seen
        try:
            return self._looked_at()
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Look anew at the next question."""
        with self._lock:
            self._good_until = float("-inf")

    def _looked_at(self) -> T:
        """As it is; under the lock, which others may have had meanwhile."""
        begun = time.monotonic()
        if self._seen is None or begun >= self._good_until:
            self._seen = self._look()
            ended = time.monotonic()
            self._good_until = ended + max(self._fresh_s, LOOKING_SHARE * (ended - begun))
        return self._seen


@dataclass(frozen=True)
class _Wait:
    """How long who waits: `starts_s[n]` is when a worker comes to the n-th of `ids`, and to one more."""

    ids: tuple[str, ...]
    starts_s: tuple[float, ...] | None

    @classmethod
    def seen(cls, catalogue: Catalogue, queue: Queue, worker_fresh_s: float) -> _Wait:
        return cls.of(catalogue.line(queue, fresh_s=worker_fresh_s))

    @classmethod
    def of(cls, line: Line) -> _Wait:
        ids = tuple(job_id for job_id, _ in line.queued)
        typical = line.durations.get(None)
        if typical is None or not line.workers:
            return cls(ids, None)
        remaining = [max(line.durations.get(kind, typical) - took, 0.0) for kind, took in line.running]
        free_at = remaining + [0.0] * (line.workers - len(remaining))
        return cls(ids, _starts(free_at, [line.durations.get(kind, typical) for _, kind in line.queued]))

    def place(self, job_id: str) -> Place:
        ahead = bisect_left(self.ids, job_id)
        return Place(ahead, None if self.starts_s is None else _rounded(self.starts_s[ahead]))


def _starts(free_at: list[float], durations: list[float]) -> tuple[float, ...]:
    """When each of these is begun, in this order, by workers that are free at these times; and one more."""
    heapify(free_at)
    starts = [heapreplace(free_at, free_at[0] + seconds) for seconds in durations]
    return (*starts, free_at[0])


def _rounded(seconds: float) -> float:
    """To two digits, and to tenths of a second: an estimate is no more exact."""
    return round(float(f"{seconds:.2g}"), 1)


def _is_model(job: Job) -> bool:
    return any(artifact.name == KEPT_ARTIFACT for artifact in job.artifacts)
