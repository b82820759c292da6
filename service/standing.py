"""Where a job stands, beside what its row says: its place in the queue, its worker's device, its last day.

Places are told from a look at the whole queue that is at most `FRESH_S` old: one look serves all who ask.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from heapq import heapify, heapreplace

from storage.catalogue import Catalogue
from storage.jobs import KEPT_ARTIFACT, Job, JobState, Line, Queue

FRESH_S = 1.0


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
_NEVER: tuple[float, dict[str, str]] = (float("-inf"), {})


class Standings:
    """Tells the standing of jobs; safe for threads."""

    def __init__(
        self, catalogue: Catalogue, *, worker_fresh_s: float, kept_s: float, fresh_s: float = FRESH_S
    ) -> None:
        self._catalogue = catalogue
        self._worker_fresh_s, self._kept_s, self._fresh_s = worker_fresh_s, kept_s, fresh_s
        self._lock = threading.Lock()
        self._waits: dict[Queue, tuple[float, _Wait]] = {}
        self._devices = _NEVER

    def of(self, job: Job) -> Standing:
        """The standing of a job."""
        waits = job.state in (JobState.WAITING, JobState.QUEUED)
        return Standing(
            place=self._wait(job.queue).place(job.id) if waits else None,
            device=None if job.worker is None else self._device(job.worker),
            expires_at=None if job.ended_at is None or _is_model(job) else job.ended_at + self._kept_s,
        )

    def forget(self) -> None:
        """Look anew at the next question."""
        with self._lock:
            self._waits.clear()
            self._devices = _NEVER

    def _wait(self, queue: Queue) -> _Wait:
        with self._lock:
            seen_at, wait = self._waits.get(queue, (float("-inf"), _NOBODY))
            if time.monotonic() - seen_at >= self._fresh_s:
                wait = _Wait.of(self._catalogue.line(queue, fresh_s=self._worker_fresh_s))
                self._waits[queue] = (time.monotonic(), wait)
            return wait

    def _device(self, worker: str) -> str | None:
        with self._lock:
            seen_at, devices = self._devices
            if time.monotonic() - seen_at >= self._fresh_s:
                devices = {known.name: known.device for known in self._catalogue.workers()}
                self._devices = (time.monotonic(), devices)
            return devices.get(worker)


@dataclass(frozen=True)
class _Wait:
    """How long who waits: `starts_s[n]` is when a worker comes to the n-th of `ids`, and to one more."""

    ids: tuple[str, ...]
    starts_s: tuple[float, ...] | None

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


_NOBODY = _Wait((), None)


def _rounded(seconds: float) -> float:
    """To two digits, and to tenths of a second: an estimate is no more exact."""
    return round(float(f"{seconds:.2g}"), 1)


def _is_model(job: Job) -> bool:
    return any(artifact.name == KEPT_ARTIFACT for artifact in job.artifacts)
