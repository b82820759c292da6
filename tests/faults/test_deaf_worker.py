"""A Celery parent that is alive and hears nothing is ended; one whose broker is away is left alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from support.fixtures import StartWorker
from support.processes import Bell, Broker, Worker, until

from storage.catalogue import Catalogue
from storage.jobs import JobState, Queue

PROBES, DEAF = "support.probe_worker", "support.deaf_worker"
QUICK: dict[str, Any] = {"hearing_s": 0.5, "deaf_s": 1.5, "presence_s": 0.2}
BOUND_S = 30.0
"""For a verdict, and for what follows from it, with these settings, on a busy machine."""


def gone(*processes: int) -> bool:
    """Whether none of these is there any more."""
    return not any(Path(f"/proc/{process}/exe").exists() for process in processes)


def cancel_consumers(broker: Broker, worker: str) -> None:
    with Celery("operator", broker=broker.url, set_as_current=False) as app:
        for queue in Queue:
            app.control.cancel_consumer(str(queue), destination=[worker])


@pytest.mark.slow
def test_one_without_a_consumer_ends_and_the_next_one_takes_its_messages(
    truth: Catalogue, bell: Bell, broker: Broker, start_worker: StartWorker
) -> None:
    worker = start_worker(PROBES, **QUICK)
    until(truth.workers)
    time.sleep(1)
    cancel_consumers(broker, "w1@test")
    children = worker.children()
    assert worker.ended(BOUND_S) == 0
    assert "consumes from no queue" in worker.log()
    until(lambda: gone(*children), BOUND_S)
    job = truth.submit("log", {})
    bell.ring(job)
    worker.start()
    bell.succeeded(job)


@pytest.mark.slow
def test_one_that_leaves_messages_waiting_ends(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    """It answers questions, as those of celery/celery#10205 do."""
    worker = start_worker(DEAF, **QUICK)
    until(truth.workers)
    for number in range(20):
        job = truth.submit("log", {"number": number, "pause_s": 0.1})
        bell.ring(job)
    bell.succeeded(job)
    (tmp_path / "deaf").touch()
    time.sleep(3)
    assert worker.children(), "nothing waits yet: nothing is wrong"
    job = truth.submit("log", {})
    bell.ring(job)
    worker.ended(BOUND_S)
    assert "leaves messages waiting" in worker.log()
    (tmp_path / "deaf").unlink()
    worker.start()
    bell.succeeded(job)


@pytest.mark.slow
def test_one_that_hangs_ends_when_the_job_at_hand_has_ended(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    worker = start_worker(PROBES, **QUICK)
    until(truth.workers)
    job = truth.submit("log", {"pause_s": 6})
    bell.ring(job)
    until(lambda: truth.job(job.id).state is JobState.RUNNING)
    children = worker.children()
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(4)
    (silent,) = truth.workers()
    assert bell.succeeded(job).attempt == 1
    assert truth.workers() == [silent], "a worker that hears nothing gives no sign of life"
    assert worker.ended(BOUND_S) == -signal.SIGKILL
    until(lambda: gone(*children), BOUND_S)
    assert "does not answer" in worker.log()


@pytest.mark.slow
def test_a_broker_that_is_away_is_no_fault_of_the_worker_s(
    truth: Catalogue, bell: Bell, broker: Broker, start_worker: StartWorker
) -> None:
    worker = start_worker(PROBES, hearing_s=1, deaf_s=4, presence_s=0.2)
    until(truth.workers)
    time.sleep(6)
    broker.kill()
    time.sleep(8)
    broker.start()
    _still_works(truth, bell, worker)
    time.sleep(6)
    os.kill(broker.pid, signal.SIGSTOP)
    time.sleep(12)
    os.kill(broker.pid, signal.SIGCONT)
    _still_works(truth, bell, worker)
    worker.pause()
    time.sleep(8)
    worker.resume()
    time.sleep(6)
    _still_works(truth, bell, worker)
    assert "it ends" not in worker.log()


def _still_works(truth: Catalogue, bell: Bell, worker: Worker) -> None:
    job = truth.submit("log", {})
    bell.ring(job)
    bell.succeeded(job)
    assert worker.children()
