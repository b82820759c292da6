"""Messages that come three times, and a job that kills whoever runs it."""

from __future__ import annotations

from pathlib import Path

from support.fixtures import StartWorker
from support.processes import Bell, until

from storage.catalogue import Catalogue
from storage.jobs import JobState

PROBES = "support.probe_worker"
JOBS = 30


def test_every_job_runs_once_though_each_message_comes_three_times_to_two_workers(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    for name in ("w1", "w2"):
        start_worker(PROBES, name)
    until(lambda: len(truth.workers()) == 2)
    jobs = [truth.submit("log", {"number": number, "pause_s": 0.01}) for number in range(JOBS)]
    for _ in range(3):
        for job in jobs:
            bell.ring(job)
    ended = [bell.succeeded(job) for job in jobs]
    assert [job.result for job in ended] == [{"number": float(number)} for number in range(JOBS)]
    assert {job.attempt for job in ended} == {1}
    assert {job.worker for job in ended} == {"w1@test", "w2@test"}
    last = truth.submit("log", {})
    bell.ring(last)
    bell.succeeded(last)
    ran = (tmp_path / "log.txt").read_text().split()
    assert sorted(ran) == sorted(job.id for job in [*jobs, last])


def test_a_job_that_kills_its_process_stops_after_three_attempts_and_others_go_on(
    truth: Catalogue, bell: Bell, start_worker: StartWorker
) -> None:
    worker = start_worker(PROBES, lease_s=1)
    until(truth.workers)
    poison = truth.submit("poison", {})
    bell.ring(poison)
    ended = bell.ended(poison)
    assert ended.error is not None
    assert (ended.state, ended.attempt, ended.error["code"]) == (JobState.FAILED, 3, "worker-lost")
    after = truth.submit("log", {})
    bell.ring(after)
    bell.succeeded(after)
    bell.ring(poison)
    last = truth.submit("log", {})
    bell.ring(last)
    bell.succeeded(last)
    assert truth.job(poison.id) == ended
    assert worker.log().count("SIGKILL") >= 3
