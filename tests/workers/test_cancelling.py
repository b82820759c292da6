"""Work that does not stop when it is to, in this process and, where it ends, in one of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.probe import Probe, ProbeResult

from storage.catalogue import Catalogue
from storage.errors import LeaseLost
from storage.job_logs import read_log
from storage.jobs import JobState
from workers.cancelling import Oversight
from workers.context import JobContext
from workers.jobs.base import Outcome
from workers.runner import Runner
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
SILENCE_S = 0.4

LOCKED = """
import sys, time
from workers.cancelling import Oversight

silence_s, when = float(sys.argv[1]), sys.argv[2]
overdue = None if when == "guest" else print
with Oversight(lambda: None, overdue, name="o", every_s=0.05, grace_s=9, silence_s=silence_s):
    time.sleep(0.6)
    print("slept", flush=True)
    if when == "within":
        sum(range(10**13))
    if when == "guest":
        sum(range(4 * 10**7))
time.sleep(0.6)
print("disarmed", flush=True)
"""


def run(when: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOCKED, str(SILENCE_S), when]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)


def test_a_process_that_holds_the_interpreter_is_ended_by_the_switch() -> None:
    """But not one whose threads get their turns, for however long."""
    ended = run("within")
    assert (ended.returncode, ended.stdout) == (1, "slept\n")
    assert f"Timeout (0:00:0{SILENCE_S:.6f})!" in ended.stderr


@pytest.mark.parametrize("when", ["never", pytest.param("guest", marks=pytest.mark.slow)])
def test_the_switch_is_off_when_no_job_runs_or_the_process_is_another_s(when: str) -> None:
    ended = run(when)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "slept\ndisarmed\n", "")


def quick(settings: WorkerSettings, grace_s: float) -> WorkerSettings:
    return settings.model_copy(update={"cancel_grace_s": grace_s, "lease_s": 0.9})


class Stubborn:
    """A job that is cancelled, or loses its lease, and goes on until its process would have ended."""

    def __init__(self, catalogue: Catalogue, settings: WorkerSettings, *, lose: bool) -> None:
        self._catalogue, self._lose = catalogue, lose
        self.seen: list[tuple[float, JobState, int]] = []
        self.asked = 0.0
        kinds = [Probe(self._behave)]
        catalogue.announce("worker-1", [kind.announcement() for kind in kinds], "cpu")
        self.runner = Runner(catalogue, kinds, settings, worker="worker-1", device="cpu", end=self._end)

    def _behave(self, context: JobContext) -> Outcome:
        self.job = context.job
        if self._lose:
            self._catalogue.heartbeat(context.job.id, context.job.attempt, -1, None)
            assert self._catalogue.claim(context.job.id, "worker-2", 30) is not None
        else:
            self._catalogue.request_cancel(context.job.id)
        self.asked = time.monotonic()
        while not self.seen:
            time.sleep(0.01)
        return Outcome(ProbeResult(number=1))

    def _end(self) -> None:
        now = self._catalogue.job(self.job.id)
        self.seen.append((time.monotonic() - self.asked, now.state, now.attempt))


def test_a_cancelled_job_is_recorded_before_its_process_ends(
    catalogue: Catalogue, settings: WorkerSettings, tmp_path: Path
) -> None:
    grace_s = 0.4
    stubborn = Stubborn(catalogue, quick(settings, grace_s), lose=False)
    job = catalogue.submit("probe", {})
    assert stubborn.runner.run(job.id) is None
    after_s, state, attempt = stubborn.seen[0]
    assert grace_s < after_s < grace_s + 3
    assert (state, attempt) == (JobState.CANCELLED, 1)
    assert catalogue.job(job.id).result is None
    events = [line["event"] for line in read_log(tmp_path, job.id).lines]
    assert events[:3] == ["begun", "overdue", "ended"]


def test_one_that_lost_its_lease_leaves_the_other_attempt_alone(
    catalogue: Catalogue, settings: WorkerSettings
) -> None:
    stubborn = Stubborn(catalogue, quick(settings, 0.2), lose=True)
    job = catalogue.submit("probe", {})
    assert stubborn.runner.run(job.id) is None
    _, state, attempt = stubborn.seen[0]
    assert (state, attempt) == (JobState.RUNNING, 2)
    assert catalogue.job(job.id).worker == "worker-2"


def test_a_process_ends_though_the_catalogue_is_away(
    catalogue: Catalogue, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RuntimeError("the catalogue is away")

    monkeypatch.setattr(catalogue, "cancelled", away)
    stubborn = Stubborn(catalogue, quick(settings, 0.1), lose=False)
    job = catalogue.submit("probe", {})
    with pytest.raises(RuntimeError, match="away"):
        stubborn.runner.run(job.id)
    assert [state for _, state, _ in stubborn.seen][:1] == [JobState.CANCELLING]


def test_help_that_outlasts_its_job_ends_the_process(catalogue: Catalogue, settings: WorkerSettings) -> None:
    ends: list[float] = []

    class Helper(Probe):
        def help(self, context: JobContext, parameters: Any, until: float) -> bool:
            catalogue.finish(context.job.id, context.job.attempt, {})
            while not ends:
                time.sleep(0.01)
            return False

    kinds = [Helper(lambda context: Outcome(ProbeResult(number=1)))]
    catalogue.announce("worker-1", [kind.announcement() for kind in kinds], "cpu")
    runner = Runner(
        catalogue, kinds, quick(settings, 0.2), worker="w2", device="cpu", end=lambda: ends.append(1.0)
    )
    job = catalogue.submit("probe", {})
    assert catalogue.claim(job.id, "worker-1", 30) is not None
    assert runner.help(job.id) is None
    assert ends


def test_a_verdict_is_not_asked_for_again_once_the_lease_is_lost() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise LeaseLost("job_1", 1)

    with Oversight(ask, None, name="o", every_s=0.01, grace_s=0, silence_s=60) as oversight:
        time.sleep(0.2)
    assert len(asked) == 1
    assert isinstance(oversight.verdict, LeaseLost)
