"""kill -9 of the whole worker, parent and pool, in the middle of the main job's two steps.

The next attempt must end with the result of a run that nobody disturbed, bit for bit, and nothing of the
killed attempt may be left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fixtures import StartWorker
from support.processes import Bell, Worker, until
from support.scans import files_below, nifti, upload

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from storage.volume import Volume

LEASE_S = 1.0
SHAPE = (160, 192, 160)
"""Large enough for an ingest that takes longer than it takes to aim."""
EMBED = {"rank": 12, "n_dim": 16, "sweeps": 3}
TRIES = 5


@dataclass(frozen=True)
class Range:
    """Where the shots are fired: two workers, so that one is there when the other is hit."""

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


@pytest.fixture
def shooting_range(truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path) -> Range:
    workers = {f"{name}@test": start_worker("workers.app", name, lease_s=LEASE_S) for name in ("w1", "w2")}
    until(lambda: len(truth.workers()) == len(workers))
    return Range(truth, bell, workers, tmp_path)


def moments(points: int, seconds: float) -> list[float]:
    """A random moment in each of `points` equal parts of a run; the same fractions in every test run."""
    generator = random.Random(points)
    return [seconds * (part + generator.uniform(0.05, 0.95)) / points for part in range(points)]


@pytest.mark.parametrize("points", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_main_job_survives_its_workers(points: int, shooting_range: Range) -> None:
    truth, root, scan = shooting_range.truth, shooting_range.root, nifti(SHAPE)

    def ingest() -> Job:
        return upload(truth, root, scan)[1]

    reference, seconds = shooting_range.undisturbed(ingest)
    for after_s in moments(points, seconds):
        ended = shooting_range.killed(ingest, after_s)
        assert ended.attempt == 2
        assert _without_peak(ended.result) == _without_peak(reference.result)
        _check_published(truth, root, ended)

    def embed() -> Job:
        return truth.submit("embed", EMBED, volume_id=reference.volume_id)

    reference, seconds = shooting_range.undisturbed(embed)
    assert reference.result is not None
    for after_s in moments(points, seconds):
        ended = shooting_range.killed(embed, after_s)
        assert ended.attempt == 2
        assert ended.result is not None
        assert ended.result["cores_digest"] == reference.result["cores_digest"]
        assert ended.result["certificate"] == reference.result["certificate"]
        assert files_below(root / "artifacts" / ended.id) == ["2"]


@pytest.mark.slow
def test_a_job_that_loses_three_workers_fails_and_leaves_nothing(shooting_range: Range) -> None:
    truth, root = shooting_range.truth, shooting_range.root
    job = shooting_range.begun(lambda: upload(truth, root, nifti(SHAPE))[1])
    for attempt in (1, 2, 3):
        until(lambda attempt=attempt: truth.job(job.id).attempt == attempt, pause_s=0.002)
        shooting_range.kill_worker_of(truth.job(job.id))
    ended = shooting_range.bell.ended(job)
    assert ended.error is not None
    assert (ended.state, ended.attempt, ended.error["code"]) == (JobState.FAILED, 3, "worker-lost")
    shooting_range.kill_worker_of(ended)
    until(lambda: not files_below(root / "uploads") and not files_below(root / "volumes"))


def _check_published(truth: Catalogue, root: Path, ingest: Job) -> None:
    """The second attempt's store is whole, and the only thing there."""
    assert ingest.volume_id is not None
    record = truth.volume(ingest.volume_id)
    assert record.stored is not None
    assert record.store == f"volumes/{record.id}/2.zarr"
    assert files_below(root / "volumes" / record.id) == ["2.zarr"]
    until(lambda: not files_below(root / "uploads"))
    Volume.open(root / record.store, record.stored.digest).verify()


def _without_peak(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return {name: value for name, value in result.items() if name != "peak_memory_bytes"}
