"""Row 12 of the fault matrix: whatever a job does, it is cancelled in time, and the next one runs."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.fixtures import StartWorker
from support.processes import Bell, Worker, until
from support.scans import files_below

from storage.catalogue import Catalogue
from storage.job_logs import read_log
from storage.jobs import Job, JobState

STUBBORN = "support.stubborn_worker"
COOPERATIVE_S, HARD_S = 2.0, 15.0
SOON_S = 20.0
"""For a process that imports torch on a busy machine."""


def begun(truth: Catalogue, bell: Bell, root: Path, kind: str) -> Job:
    """A job of a kind that does not stop, well inside of what it does."""
    job = truth.submit(kind, {})
    bell.ring(job)
    until((root / "artifacts" / job.id / "1" / "half.json").exists)
    time.sleep(0.3)
    return truth.job(job.id)


def seconds_to_cancel(truth: Catalogue, bell: Bell, job: Job) -> float:
    """From the request to the word `cancelled`."""
    asked = time.monotonic()
    assert truth.request_cancel(job.id).state is JobState.CANCELLING
    assert bell.ended(job).state is JobState.CANCELLED
    return time.monotonic() - asked


def seconds_to_run(bell: Bell, job: Job) -> float:
    """Until a job that waits has run."""
    asked = time.monotonic()
    bell.succeeded(job)
    return time.monotonic() - asked


def replaced(worker: Worker, child: int) -> bool:
    """Whether another pool process is there in this one's place."""
    return bool(worker.children()) and child not in worker.children()


@pytest.mark.parametrize("kind", ["loop", pytest.param("nap", marks=pytest.mark.slow)])
def test_a_job_without_reports_is_cancelled_with_its_process(
    kind: str, truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(STUBBORN, cancel_grace_s=0.5)
    until(truth.workers)
    job = begun(truth, bell, tmp_path, kind)
    (child,) = worker.children()
    after = truth.submit("log", {})
    bell.ring(after)
    assert seconds_to_cancel(truth, bell, job) < HARD_S
    assert seconds_to_run(bell, after) < SOON_S
    assert replaced(worker, child)
    assert files_below(tmp_path / "artifacts") == []
    assert truth.job(job.id).state is JobState.CANCELLED
    assert [line["event"] for line in read_log(tmp_path, job.id).lines] == ["begun", "overdue", "ended"]
    assert (tmp_path / "log.txt").read_text().split() == [after.id]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kernel", "loop", "nap"])
def test_it_takes_less_than_fifteen_seconds(
    kind: str, truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(STUBBORN)
    until(truth.workers)
    job = begun(truth, bell, tmp_path, kind)
    (child,) = worker.children()
    after = truth.submit("log", {})
    bell.ring(after)
    cancelled_s = seconds_to_cancel(truth, bell, job)
    next_s = seconds_to_run(bell, after)
    print(f"{kind}: cancelled after {cancelled_s:.2f} s, the next job ran {next_s:.2f} s later")
    assert cancelled_s < HARD_S
    assert next_s < SOON_S
    assert replaced(worker, child)
    assert files_below(tmp_path / "artifacts") == []


@pytest.mark.slow
def test_a_process_that_never_lets_go_of_the_interpreter_ends_too(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its lease runs out, the sweep says `cancelled`, and the switch of CPython's ends it."""
    worker = start_worker(STUBBORN, lease_s=3, silence_s=4)
    until(truth.workers)
    job = begun(truth, bell, tmp_path, "locked")
    (child,) = worker.children()
    after = truth.submit("log", {})
    bell.ring(after)
    asked = time.monotonic()
    assert seconds_to_cancel(truth, bell, job) < HARD_S
    until(lambda: replaced(worker, child))
    assert time.monotonic() - asked < 3 + 4 + 5
    bell.succeeded(after, SOON_S)
    assert files_below(tmp_path / "artifacts") == []
    assert "Timeout (0:00:07)!" in worker.log()


@pytest.mark.slow
def test_a_process_that_was_suspended_for_too_long_is_replaced_when_it_goes_on(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its attempt is another's by then; test_paused_worker.py has a shorter pause, and no process ends."""
    worker = start_worker(STUBBORN, lease_s=1, silence_s=3)
    until(truth.workers)
    job = begun(truth, bell, tmp_path, "nap")
    (child,) = worker.children()
    worker.pause()
    until(lambda: truth.job(job.id).state is JobState.QUEUED)
    truth.request_cancel(job.id)
    time.sleep(5)
    worker.resume()
    until(lambda: replaced(worker, child))
    after = truth.submit("log", {})
    bell.ring(after)
    bell.succeeded(after)


@pytest.mark.slow
def test_an_attempt_that_lost_its_lease_and_does_not_stop_ends_with_its_process(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(STUBBORN, cancel_grace_s=0.5, retry_pause_s=0)
    until(truth.workers)
    job = begun(truth, bell, tmp_path, "loop")
    (child,) = worker.children()
    truth.heartbeat(job.id, job.attempt, -1, None)
    assert truth.claim(job.id, "another", 60) is not None
    until(lambda: replaced(worker, child))
    now = truth.job(job.id)
    assert (now.state, now.attempt, now.worker) == (JobState.RUNNING, 2, "another")


@pytest.mark.slow
def test_a_job_that_reports_stops_within_two_seconds_and_keeps_its_process(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    worker = start_worker(STUBBORN)
    until(truth.workers)
    job = truth.submit("wait", {})
    bell.ring(job)
    until(lambda: truth.job(job.id).state is JobState.RUNNING)
    children = worker.children()
    assert seconds_to_cancel(truth, bell, job) < COOPERATIVE_S
    after = truth.submit("log", {})
    bell.ring(after)
    bell.succeeded(after)
    assert worker.children() == children


@pytest.mark.slow
def test_what_was_answered_is_what_becomes_of_it(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    """Cancelled at any moment around its commit, a job never ends as anything but what the answer said."""
    start_worker(STUBBORN)
    until(truth.workers)
    moments, ends = random.Random(12), set()
    for number in range(30):
        job = truth.submit("log", {"number": number})
        bell.ring(job)
        until(lambda job=job: truth.job(job.id).state is not JobState.QUEUED, pause_s=0.0005)
        time.sleep(moments.uniform(0, 0.02))
        answered = truth.request_cancel(job.id).state
        ended = bell.ended(job).state
        ends.add(ended)
        assert ended is (JobState.SUCCEEDED if answered is JobState.SUCCEEDED else JobState.CANCELLED)
    assert ends == {JobState.SUCCEEDED, JobState.CANCELLED}
