"""kill -9 of the broker with 50 jobs queued: none is lost, none runs twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fixtures import StartWorker
from support.processes import Bell, Broker, until

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState

PROBES = "support.probe_worker"
JOBS = 50


def ring_all(truth: Catalogue, bell: Bell) -> list[Job]:
    jobs = [truth.submit("log", {"pause_s": 0.02}) for _ in range(JOBS)]
    for job in jobs:
        bell.ring(job)
    return jobs


def runs(root: Path) -> list[str]:
    """The id of every job that ran, as often as it ran."""
    log = root / "log.txt"
    return log.read_text().split() if log.is_file() else []


@pytest.mark.parametrize("forget", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_jobs_outlive_the_broker(
    forget: bool, truth: Catalogue, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    """With its queue on disk the messages come back; without it, the sweep rings again."""
    worker = start_worker(PROBES)
    until(truth.workers)
    with Bell(truth, broker, ring_after_s=3.0) as bell:
        jobs = ring_all(truth, bell)
        until(lambda: len(runs(tmp_path)) >= 5)
        broker.kill()
        assert len(runs(tmp_path)) < JOBS - 5
        if forget:
            broker.forget()
        during = truth.submit("log", {})
        bell.ring(during)
        broker.start()
        for job in [*jobs, during]:
            assert bell.succeeded(job, deadline_s=120).attempt == 1
    assert sorted(runs(tmp_path)) == sorted(job.id for job in [*jobs, during])
    assert worker.stop() == 0


def test_a_worker_that_starts_before_its_broker_waits_for_it(
    truth: Catalogue, broker: Broker, start_worker: StartWorker
) -> None:
    broker.kill()
    start_worker(PROBES)
    with Bell(truth, broker, ring_after_s=0.5) as bell:
        until(truth.workers)
        job = truth.submit("log", {})
        broker.start()
        assert bell.succeeded(job).state is JobState.SUCCEEDED
