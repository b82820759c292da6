"""The runner with a probe for a job: every way in which an attempt can end."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.probe import Probe, ProbeResult
from support.scans import upload

from models.errors import NonFiniteSample, SourceFailed
from storage.artifacts import ArtifactStore
from storage.catalogue import Catalogue
from storage.errors import CorruptVolume, InvalidScan, StorageFull
from storage.jobs import Job, JobState, Progress, Sender
from storage.records import VolumeState
from workers import runner as runner_module
from workers.context import JobContext
from workers.jobs.base import Outcome
from workers.jobs.ingest import IngestParameters

DONE = Outcome(ProbeResult(number=1))
DEADLINE_S = 10.0


def raising(error: BaseException) -> Callable[[JobContext], Outcome]:
    """A job that writes an artifact, then fails."""

    def behave(context: JobContext) -> Outcome:
        context.artifacts.write_json("half.json", {})
        raise error

    return behave


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def written(root: Path) -> list[str]:
    """The artifacts' files."""
    return sorted(path.name for path in (root / "artifacts").rglob("*") if path.is_file())


def test_a_job_that_succeeds_is_published(catalogue: Catalogue, make_runner: Any, tmp_path: Path) -> None:
    def behave(context: JobContext) -> Outcome:
        artifact = context.artifacts.write_tensors("cores.safetensors", {"a": np.arange(3)}, {})
        return Outcome(ProbeResult(number=0.1), (artifact,))

    runner = make_runner(Probe(behave))
    ended = runner.run(catalogue.submit("probe", {}).id)
    assert ended == catalogue.job(ended.id)
    assert (ended.state, ended.result) == (JobState.SUCCEEDED, {"number": 0.1})
    (artifact,) = ended.artifacts
    path = ArtifactStore(tmp_path / "artifacts").path(ended.id, ended.attempt, artifact.name)
    assert path.stat().st_size == artifact.size


def test_a_job_that_is_not_to_be_had_is_left_alone(catalogue: Catalogue, make_runner: Any) -> None:
    runner = make_runner(Probe(lambda context: DONE))
    job = catalogue.submit("probe", {})
    assert runner.run("job_x") is None
    assert runner.run(job.id) is not None
    ended = catalogue.job(job.id)
    assert runner.run(job.id) is None
    assert catalogue.job(job.id) == ended


def test_bad_parameters_are_named(catalogue: Catalogue, make_runner: Any) -> None:
    runner = make_runner(Probe(lambda context: DONE))
    ended = runner.run(catalogue.submit("probe", {"number": "many", "a/b": 1}).id)
    assert ended.state is JobState.FAILED
    assert ended.error["code"] == "invalid-parameters"
    assert {pointer for pointer, _ in ended.error["problems"]} == {"/number", "/a~1b"}


def test_a_kind_that_this_worker_cannot_do_is_left_for_another(
    catalogue: Catalogue, make_runner: Any
) -> None:
    able = make_runner(Probe(lambda context: DONE))
    job = catalogue.submit("probe", {})
    assert make_runner().run(job.id) is None
    assert catalogue.job(job.id) == job
    assert able.run(job.id).state is JobState.SUCCEEDED


def test_a_job_over_budget_never_begins(catalogue: Catalogue, make_runner: Any) -> None:
    runner = make_runner(
        Probe(raising(AssertionError("it began")), memory_bytes=1001), memory_budget_bytes=1000
    )
    ended = runner.run(catalogue.submit("probe", {}).id)
    assert ended.state is JobState.FAILED
    assert (ended.error["code"], ended.error["needed"], ended.error["allowed"]) == ("over-budget", 1001, 1000)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidScan("the header is damaged"), "invalid-scan"),
        (NonFiniteSample((1, 2, 3), float("nan")), "non-finite-sample"),
        (MemoryError(), "out-of-memory"),
        (RuntimeError("/secret/path"), "internal-error"),
        (OSError(errno.EIO, "secret disk"), "internal-error"),
    ],
)
def test_errors_that_no_retry_cures_fail_at_once_and_leave_nothing(
    error: Exception, code: str, catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    ended = make_runner(Probe(raising(error))).run(catalogue.submit("probe", {}).id)
    assert (ended.state, ended.attempt) == (JobState.FAILED, 1)
    assert (ended.error["code"], ended.error["retryable"]) == (code, False)
    assert "secret" not in str(ended.error)
    assert written(tmp_path) == []


def test_the_log_has_what_the_record_withholds(
    catalogue: Catalogue, make_runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_runner(Probe(raising(RuntimeError("insides")))).run(catalogue.submit("probe", {}).id)
    assert "RuntimeError: insides" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        StorageFull("full"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "Too large"),
    ],
)
def test_a_full_disk_is_tried_again_up_to_the_last_attempt(
    error: Exception, catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    runner = make_runner(Probe(raising(error)))
    job = catalogue.submit("probe", {})
    assert runner.run(job.id).state is JobState.QUEUED
    assert runner.run(job.id).state is JobState.QUEUED
    ended = runner.run(job.id)
    assert (ended.state, ended.attempt, ended.error["code"]) == (JobState.FAILED, 3, "storage-full")
    assert written(tmp_path) == []


def test_a_pause_comes_before_a_retry(catalogue: Catalogue, make_runner: Any) -> None:
    runner = make_runner(Probe(raising(StorageFull("full"))), retry_pause_s=60)
    job = catalogue.submit("probe", {})
    assert runner.run(job.id).state is JobState.QUEUED
    assert runner.run(job.id) is None


def test_the_store_s_own_error_is_told_for_a_source_that_failed(
    catalogue: Catalogue, make_runner: Any
) -> None:
    error = SourceFailed("the source broke off")
    error.__cause__ = CorruptVolume("0/c/0/0/0", "checksum")
    ended = make_runner(Probe(raising(error))).run(catalogue.submit("probe", {}).id)
    assert (ended.error["code"], ended.error["key"]) == ("corrupt-volume", "0/c/0/0/0")


def test_a_running_job_hears_that_it_was_cancelled(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    heard_after = []

    def behave(context: JobContext) -> Outcome:
        context.artifacts.write_json("half.json", {})
        catalogue.request_cancel(context.job.id)
        asked = time.monotonic()
        try:
            until(lambda: context.report(Progress("working")))
        finally:
            heard_after.append(time.monotonic() - asked)
        return DONE

    ended = make_runner(Probe(behave)).run(catalogue.submit("probe", {}).id)
    assert (ended.state, ended.result, ended.error) == (JobState.CANCELLED, None, None)
    assert heard_after[0] < 2
    assert written(tmp_path) == []


def test_a_cancel_during_the_last_step_wins(catalogue: Catalogue, make_runner: Any, tmp_path: Path) -> None:
    def behave(context: JobContext) -> Outcome:
        artifact = context.artifacts.write_json("whole.json", {})
        catalogue.request_cancel(context.job.id)
        return Outcome(ProbeResult(number=1), (artifact,))

    ended = make_runner(Probe(behave)).run(catalogue.submit("probe", {}).id)
    assert (ended.state, ended.result, ended.artifacts) == (JobState.CANCELLED, None, ())
    assert written(tmp_path) == []


def _lose(catalogue: Catalogue, context: JobContext) -> None:
    """Another worker takes the job over, as after a long pause of this one."""
    catalogue.heartbeat(context.job.id, context.job.attempt, -1, None)
    assert catalogue.claim(context.job.id, "worker-2", 30) is not None


def test_an_attempt_that_lost_its_lease_stops_and_leaves_nothing(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    def behave(context: JobContext) -> Outcome:
        context.artifacts.write_json("first.json", {})
        _lose(catalogue, context)
        until(lambda: context.report(Progress("working")))
        return DONE

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    assert runner.run(job.id) is None
    now = catalogue.job(job.id)
    assert (now.state, now.attempt, now.worker) == (JobState.RUNNING, 2, "worker-2")
    assert written(tmp_path) == []


def test_a_late_finish_is_refused_and_leaves_the_other_attempt_alone(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path / "artifacts")

    def behave(context: JobContext) -> Outcome:
        late = context.artifacts.write_json("late.json", {})
        _lose(catalogue, context)
        store.writer(context.job.id, 2).write_json("second.json", {})
        return Outcome(ProbeResult(number=1), (late,))

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    assert runner.run(job.id) is None
    assert catalogue.job(job.id).state is JobState.RUNNING
    assert written(tmp_path) == ["second.json"]


def test_a_late_attempt_that_trips_over_its_removed_files_leaves_the_volume_open(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    """A paused ingest wakes up when the next attempt has removed its files, and published its own."""

    class LateIngest(Probe):
        name = "ingest"
        parameters = IngestParameters

    def behave(context: JobContext) -> Outcome:
        _lose(catalogue, context)
        catalogue.finish(context.job.id, 2, {}, store="volumes/x/2.zarr")
        raise CorruptVolume("0/c/0/0/0", "it breaks off")

    volume, job = upload(catalogue, tmp_path, b"scan")
    assert make_runner(LateIngest(behave)).run(job.id) is None
    assert catalogue.volume(volume.id).state is VolumeState.READY


def test_tidying_that_takes_longer_than_a_lease_does_not_cost_it(
    catalogue: Catalogue, make_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_tidy(root: Path, job: Job) -> None:
        time.sleep(1.0)
        catalogue.sweep()

    monkeypatch.setattr(runner_module, "tidy_job", slow_tidy)
    ended = make_runner(Probe(lambda context: DONE), lease_s=0.5).run(catalogue.submit("probe", {}).id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


def test_the_next_attempt_removes_what_a_killed_one_left(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    runner = make_runner(Probe(lambda context: DONE))
    job = catalogue.submit("probe", {})
    catalogue.claim(job.id, "killed", -1)
    ArtifactStore(tmp_path / "artifacts").writer(job.id, 1).write_json("killed.json", {})
    ended = runner.run(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert written(tmp_path) == []


def test_a_long_silent_step_keeps_its_lease(catalogue: Catalogue, make_runner: Any) -> None:
    def behave(context: JobContext) -> Outcome:
        time.sleep(1.5)
        catalogue.sweep()
        return DONE

    ended = make_runner(Probe(behave), lease_s=0.6).run(catalogue.submit("probe", {}).id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


def test_progress_is_seen_from_outside(catalogue: Catalogue, make_runner: Any) -> None:
    def behave(context: JobContext) -> Outcome:
        context.report(Progress("sampling", 3, 10, "cubes"))
        until(lambda: catalogue.job(context.job.id).progress == Progress("sampling", 3, 10, "cubes"))
        return DONE

    assert make_runner(Probe(behave)).run(catalogue.submit("probe", {}).id).state is JobState.SUCCEEDED


def test_reporting_is_cheap(catalogue: Catalogue, make_runner: Any) -> None:
    def behave(context: JobContext) -> Outcome:
        for done in range(100_000):
            context.report(Progress("sampling", done))
        return DONE

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    began = time.monotonic()
    ended = runner.run(job.id)
    assert ended.revision <= 2 + (time.monotonic() - began) + 1


def test_a_job_finds_nothing_of_another_project(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    wanted: list[str] = []

    def behave(context: JobContext) -> Outcome:
        for find, name in zip((context.find_volume, context.find_job), wanted, strict=True):
            if name:
                find(name)
        return DONE

    runner = make_runner(Probe(behave))
    scan, _ = upload(catalogue, tmp_path, b"scan")
    model = catalogue.submit("probe", {})
    for names, code in (((scan.id, ""), "volume-not-found"), (("", model.id), "job-not-found")):
        wanted[:] = names
        ours = catalogue.submit("probe", {})
        theirs = catalogue.submit("probe", {}, sender=Sender("other"))
        assert runner.run(ours.id).state is JobState.SUCCEEDED
        assert runner.run(theirs.id).error["code"] == code
