"""Who is called for help, and what a helper does whose help is not wanted or not possible."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kombu.exceptions import OperationalError
from support.cohorts import School
from support.processes import until
from test_compress_job import body, clinic, result_of, scan

from storage.derived_help import order_of
from storage.jobs import HELP_JOB, Job, JobState
from workers import tasks
from workers.jobs import KINDS
from workers.runner import Runner
from workers.settings import WorkerSettings

__all__ = ["clinic"]


def helper_of(clinic: School, **settings: Any) -> Runner:
    """Another worker at the same data root."""
    known = WorkerSettings(data_root=clinic.root, device="cpu", lease_s=30, **settings)
    return Runner(clinic.catalogue, KINDS, known, worker="worker-2", device="cpu")


def caller_of(clinic: School, helper: Runner, told: list[Any]) -> Runner:
    known = WorkerSettings(data_root=clinic.root, device="cpu", lease_s=30)

    def call(job: Job, count: int) -> None:
        told.append((job.id, count, helper.help(job.id)))

    return Runner(clinic.catalogue, KINDS, known, worker="worker-1", device="cpu", call_helpers=call)


@pytest.fixture(scope="module")
def wide(clinic: School) -> str:
    """Of six shards."""
    return clinic.ingested(scan(body((300, 280, 8), np.uint8)))


def compressed(clinic: School, wide: str, helper: Runner, told: list[Any]) -> dict[str, Any]:
    job = clinic.catalogue.submit("compress", {"bound": 4}, volume_id=wide)
    ended = caller_of(clinic, helper, told).run(job.id)
    assert ended is not None
    assert ended.state is JobState.SUCCEEDED, ended.error
    return result_of(ended)


def test_a_helper_does_its_part(clinic: School, wide: str) -> None:
    told: list[Any] = []
    result = compressed(clinic, wide, helper_of(clinic), told)
    ((_, count, more),) = told
    assert count >= 1
    assert more is None
    assert result["tiles_helped"] > 0
    assert result["tiles_coded"] == 0


def test_a_helper_in_a_hurry_says_that_there_is_more(
    clinic: School, wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runner.HELP_S", -1.0)
    told: list[Any] = []
    result = compressed(clinic, wide, helper_of(clinic), told)
    ((job_id, _, more),) = told
    assert more.id == job_id
    assert result["tiles_helped"] > 0
    assert result["tiles_coded"] > 0


@pytest.mark.parametrize("reason", ["budget", "kind", "error"])
def test_a_helper_that_cannot_is_done_without(
    clinic: School, wide: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = helper_of(clinic, memory_budget_bytes=1 if reason == "budget" else None)
    if reason == "kind":
        helper._kinds.pop("compress")
    if reason == "error":
        monkeypatch.setattr("workers.jobs.compress.assisted", lambda *_, **__: 1 / 0)
    told: list[Any] = []
    result = compressed(clinic, wide, helper, told)
    assert [more for _, _, more in told] == [None]
    assert result["tiles_helped"] == 0


def test_ended_and_unknown_jobs_need_no_help(clinic: School, wide: str) -> None:
    helper = helper_of(clinic)
    queued = clinic.catalogue.submit("compress", {"bound": 4}, volume_id=wide)
    assert helper.help(queued.id) is None
    clinic.catalogue.request_cancel(queued.id)
    assert helper.help(queued.id) is None
    assert helper.help("job_unknown") is None
    assert order_of(clinic.root) is None


class Broker:
    """Takes messages, refuses them, or keeps everybody waiting."""

    def __init__(self, *, refuses: bool = False, silent: bool = False) -> None:
        self.refuses, self.released = refuses, threading.Event()
        if not silent:
            self.released.set()
        self.asked: list[tuple[str, list[str]]] = []

    def send_task(self, name: str, args: list[str], **options: Any) -> None:
        assert options["queue"] == "batch"
        assert options["expires"] > 0
        self.asked.append((name, args))
        assert self.released.wait(20)
        if self.refuses:
            raise OperationalError("no")


JOB: Any = SimpleNamespace(id="job_1", kind="compress", queue="batch")
IDLE: Any = SimpleNamespace(idle_workers=lambda kind, seen_within_s: ["w2", "w3", "w4"])


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (2, 2), (9, 3)])
def test_as_many_are_called_as_are_idle_and_of_use(count: int, calls: int) -> None:
    broker: Any = Broker()
    tasks.call_helpers(broker, IDLE, 30.0, JOB, count)
    until(lambda: len(broker.asked) == calls, 10)
    time.sleep(0.02)
    assert broker.asked == [(HELP_JOB, ["job_1"])] * calls


def test_a_broker_that_refuses_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    broker: Any = Broker(refuses=True)
    tasks.call_helpers(broker, IDLE, 30.0, JOB, 9)
    until(lambda: "goes on without help" in caplog.text, 10)
    assert len(broker.asked) == 1


def test_a_broker_that_does_not_answer_holds_up_nothing() -> None:
    broker: Any = Broker(silent=True)
    began = time.monotonic()
    tasks.call_helpers(broker, IDLE, 30.0, JOB, 9)
    assert time.monotonic() - began < 5
    until(lambda: broker.asked, 10)
    broker.released.set()
    until(lambda: len(broker.asked) == 3, 10)


def test_nothing_of_helpers_is_left(clinic: School, wide: str) -> None:
    compressed(clinic, wide, helper_of(clinic), [])
    assert not list(Path(clinic.root / "checkpoints").rglob("desks*"))
