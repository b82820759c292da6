"""Jobs: claims, leases, fencing, cancel, retries. Time passes by leases that have run out, not by sleep."""

from __future__ import annotations

import math
import time

import pytest
from catalogue_examples import ERROR, KIND, TRANSIENT, announce, queued, ready_volume, running

from storage.catalogue import Catalogue
from storage.errors import JobCancelled, LeaseLost, MissingJob, UnknownKind
from storage.jobs import Artifact, JobState, Progress

ARTIFACT = Artifact("cores.safetensors", 10, "a" * 64, "application/vnd.safetensors")


def test_submit_records_what_was_asked_for(catalogue: Catalogue) -> None:
    announce(catalogue)
    job = catalogue.submit("measure", {"radius": 2.5}, labels={"study": "A"})
    assert (job.state, job.attempt, job.queue) == (JobState.QUEUED, 0, KIND.queue)
    assert (job.parameters, job.labels) == ({"radius": 2.5}, {"study": "A"})
    assert abs(job.created_at - time.time()) < 60
    assert catalogue.job(job.id) == job


def test_unknown_kinds_and_jobs(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownKind, match="is a worker running"):
        catalogue.submit("measure", {})
    announce(catalogue, "a", "b")
    with pytest.raises(UnknownKind, match="a, b"):
        catalogue.submit("measure", {})
    for ask in (catalogue.job, catalogue.request_cancel):
        with pytest.raises(MissingJob):
            ask("job_x")


def test_a_job_is_claimed_once(catalogue: Catalogue) -> None:
    job = queued(catalogue)
    claimed = catalogue.claim(job.id, "worker-1", 30)
    assert claimed is not None
    assert (claimed.state, claimed.attempt, claimed.worker) == (JobState.RUNNING, 1, "worker-1")
    assert claimed.started_at is not None
    assert claimed.lease_until is not None
    assert claimed.lease_until - claimed.started_at == pytest.approx(30, abs=1)
    assert catalogue.claim(job.id, "worker-2", 30) is None
    assert catalogue.claim("job_x", "worker-2", 30) is None


def test_finish_publishes(catalogue: Catalogue) -> None:
    job = running(catalogue)
    done = catalogue.finish(job.id, 1, {"value": 1 / 3}, artifacts=[ARTIFACT])
    assert done == catalogue.job(job.id)
    assert (done.state, done.result, done.artifacts) == (JobState.SUCCEEDED, {"value": 1 / 3}, (ARTIFACT,))
    assert (done.worker, done.lease_until) == ("worker-1", None)
    assert done.ended_at is not None


def test_a_result_must_be_finite(catalogue: Catalogue) -> None:
    job = running(catalogue)
    with pytest.raises(Exception, match="not JSON compliant"):
        catalogue.finish(job.id, 1, {"value": math.nan})
    assert catalogue.job(job.id).state is JobState.RUNNING


def test_a_late_attempt_is_refused_everything(catalogue: Catalogue) -> None:
    job = running(catalogue, lease_s=-1)
    second = catalogue.claim(job.id, "worker-2", 30)
    assert second is not None
    assert (second.attempt, second.worker) == (2, "worker-2")
    for say in (
        lambda: catalogue.heartbeat(job.id, 1, 30, None),
        lambda: catalogue.finish(job.id, 1, {"late": True}),
        lambda: catalogue.fail(job.id, 1, ERROR),
        lambda: catalogue.cancelled(job.id, 1),
    ):
        with pytest.raises(LeaseLost):
            say()
    assert catalogue.job(job.id) == second
    assert catalogue.finish(job.id, 2, {"late": False}).result == {"late": False}
    with pytest.raises(LeaseLost):
        catalogue.finish(job.id, 2, {"late": True})


def test_a_heartbeat_renews_and_carries_progress(catalogue: Catalogue) -> None:
    job = running(catalogue, lease_s=-1)
    catalogue.heartbeat(job.id, 1, 30, Progress("sweep", 3, 10, "cubes"))
    renewed = catalogue.job(job.id)
    assert renewed.progress == Progress("sweep", 3, 10, "cubes")
    assert renewed.revision == job.revision + 1
    assert catalogue.claim(job.id, "worker-2", 30) is None
    catalogue.heartbeat(job.id, 1, 30, None)
    quiet = catalogue.job(job.id)
    assert (quiet.revision, quiet.progress) == (renewed.revision, renewed.progress)


def test_cancel_before_the_start_is_at_once(catalogue: Catalogue) -> None:
    job = queued(catalogue)
    cancelled = catalogue.request_cancel(job.id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.ended_at is not None
    assert catalogue.claim(job.id, "worker-1", 30) is None
    assert catalogue.request_cancel(job.id) == cancelled


def test_cancel_of_a_running_job_goes_by_cancelling(catalogue: Catalogue) -> None:
    job = running(catalogue)
    asked = catalogue.request_cancel(job.id)
    assert (asked.state, asked.ended_at) == (JobState.CANCELLING, None)
    assert catalogue.request_cancel(job.id) == asked
    with pytest.raises(JobCancelled):
        catalogue.heartbeat(job.id, 1, 30, None)
    assert catalogue.cancelled(job.id, 1).state is JobState.CANCELLED


def test_cancel_wins_over_a_result_and_over_an_error(catalogue: Catalogue) -> None:
    job = running(catalogue)
    catalogue.request_cancel(job.id)
    with pytest.raises(JobCancelled):
        catalogue.finish(job.id, 1, {"value": 1})
    assert catalogue.job(job.id).state is JobState.CANCELLING
    assert catalogue.job(job.id).result is None
    ended = catalogue.fail(job.id, 1, TRANSIENT)
    assert (ended.state, ended.error) == (JobState.CANCELLED, None)


def test_cancel_leaves_an_ended_job_as_it_is(catalogue: Catalogue) -> None:
    job = running(catalogue)
    done = catalogue.finish(job.id, 1, {})
    assert catalogue.request_cancel(job.id) == done


def test_nobody_can_claim_that_it_was_cancelled_when_it_was_not(catalogue: Catalogue) -> None:
    job = running(catalogue)
    with pytest.raises(LeaseLost):
        catalogue.cancelled(job.id, 1)


def test_an_input_error_fails_at_once(catalogue: Catalogue) -> None:
    job = running(catalogue)
    failed = catalogue.fail(job.id, 1, ERROR)
    assert (failed.state, failed.error, failed.attempt) == (JobState.FAILED, ERROR, 1)


def test_a_retryable_error_pauses_then_retries_and_stops_after_the_last_attempt(catalogue: Catalogue) -> None:
    job = running(catalogue)
    paused = catalogue.fail(job.id, 1, TRANSIENT, retry_pause_s=60)
    assert (paused.state, paused.error) == (JobState.QUEUED, None)
    assert catalogue.claim(job.id, "worker-1", 30) is None
    assert catalogue.sweep(ring_after_s=0) == []

    other = running(catalogue)
    for attempt in (1, 2, 3):
        ended = catalogue.fail(other.id, attempt, TRANSIENT, retry_pause_s=0)
        again = catalogue.claim(other.id, "worker-1", 30)
        assert (again is not None) == (attempt < 3)
    assert (ended.state, ended.error, ended.attempt) == (JobState.FAILED, TRANSIENT, 3)


def test_every_visible_change_has_a_new_revision(catalogue: Catalogue) -> None:
    job = queued(catalogue)
    seen = [job.revision]
    catalogue.claim(job.id, "worker-1", 30)
    seen.append(catalogue.job(job.id).revision)
    seen.append(catalogue.request_cancel(job.id).revision)
    seen.append(catalogue.cancelled(job.id, 1).revision)
    assert seen == sorted(set(seen))


def test_jobs_are_filtered_and_listed_newest_first(catalogue: Catalogue) -> None:
    announce(catalogue, "measure", "count")
    volume = ready_volume(catalogue)
    made = [catalogue.submit("measure", {}).id for _ in range(3)]
    counted = catalogue.submit("count", {}, volume_id=volume.id)
    catalogue.request_cancel(made[0])
    assert [job.id for job in catalogue.jobs(kind="measure")] == made[::-1]
    assert [job.id for job in catalogue.jobs(kind="measure", limit=2, before=made[2])] == made[1::-1]
    assert [job.id for job in catalogue.jobs(state=JobState.CANCELLED)] == [made[0]]
    assert [job.id for job in catalogue.jobs(volume_id=volume.id)] == [counted.id, volume.ingest_job]
