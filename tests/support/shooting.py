"""A range to shoot workers on: two of them, so that one is there when the other is hit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from support.processes import Bell, Worker, until

LEASE_S = 2.0
TRIES = 5


@dataclass(frozen=True)
class Range:
    """Where the shots are fired."""

    truth: Catalogue
    bell: Bell
    workers: dict[str, Worker]
    root: Path

    def begun(self, make: Callable[[], Job]) -> Job:
        """A new job, once a worker has begun it."""
        job = make()
        self.bell.ring(job)
        until(lambda: self.truth.job(job.id).state is not JobState.QUEUED, pause_s=0.002)
        return self.truth.job(job.id)

    def undisturbed(self, make: Callable[[], Job]) -> tuple[Job, float]:
        """A job as it ends by itself, and the seconds that it ran."""
        ended = self.bell.succeeded(self.begun(make))
        assert ended.attempt == 1
        assert ended.started_at is not None
        assert ended.ended_at is not None
        return ended, ended.ended_at - ended.started_at

    def killed(self, make: Callable[[], Job], after_s: float) -> Job:
        """A job whose worker was killed about `after_s` after its begin, as the next attempt ends it."""
        for misses in range(TRIES):
            job = self.begun(make)
            time.sleep(after_s / 2**misses)
            self.kill_worker_of(job)
            hit = self.truth.job(job.id).state is JobState.RUNNING
            ended = self.bell.succeeded(job)
            if hit:
                return ended
        raise AssertionError(f"the job was over before it could be hit, {TRIES} times")

    def kill_worker_of(self, job: Job) -> None:
        """SIGKILL to the whole worker; a new one of the same name starts in its place."""
        assert job.worker is not None
        worker = self.workers[job.worker]
        worker.kill()
        worker.start()


def moments(points: int, seconds: float) -> list[float]:
    """A random moment in each of `points` equal parts of a run; the same fractions in every test run."""
    generator = random.Random(points)
    return [seconds * (part + generator.uniform(0.05, 0.95)) / points for part in range(points)]
