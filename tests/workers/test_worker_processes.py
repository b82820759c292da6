"""Celery, a real broker, a real worker process: from the ring to the result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.fixtures import StartWorker
from support.processes import Bell, until

from storage.catalogue import Catalogue
from storage.jobs import JobState

PROBES = "support.probe_worker"


def test_from_the_ring_to_the_result(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(PROBES, presence_s=0.1)
    until(truth.workers)
    (record,) = truth.workers()
    assert (record.name, record.device, record.kinds) == ("w1@test", "cpu", ("log", "poison", "wait"))

    jobs = [truth.submit("log", {"number": number}) for number in range(10)]
    for job in jobs:
        bell.ring(job)
        bell.ring(job)  # a doubled message does nothing
    ended = [bell.succeeded(job) for job in jobs]
    assert [job.result for job in ended] == [{"number": float(number)} for number in range(10)]
    assert {(job.worker, job.attempt) for job in ended} == {("w1@test", 1)}
    assert sorted((tmp_path / "log.txt").read_text().split()) == [job.id for job in jobs]
    (before,) = truth.workers()
    until(lambda: truth.workers()[0].last_seen > before.last_seen)
    assert worker.stop() == 0


def test_a_running_job_is_cancelled_and_the_next_one_runs(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    start_worker(PROBES)
    until(truth.workers)
    endless = truth.submit("wait", {})
    bell.ring(endless)
    until(lambda: truth.job(endless.id).state is JobState.RUNNING)
    assert truth.request_cancel(endless.id).state is JobState.CANCELLING
    after = truth.submit("log", {})
    bell.ring(after)
    assert bell.ended(endless, deadline_s=5).state is JobState.CANCELLED
    bell.succeeded(after)


def test_a_pool_process_that_dies_costs_one_attempt(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    worker = start_worker(PROBES, lease_s=1)
    until(truth.workers)
    endless = truth.submit("wait", {})
    bell.ring(endless)
    until(lambda: truth.job(endless.id).state is JobState.RUNNING)
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    until(lambda: truth.job(endless.id).attempt == 2)
    truth.request_cancel(endless.id)
    assert bell.ended(endless).state is JobState.CANCELLED
