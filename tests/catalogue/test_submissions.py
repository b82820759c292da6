"""Requests that make jobs, all or none and once; lines of those that wait; jobs that are removed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from catalogue_examples import ERROR, KIND, announce, queued, ready_volume, running, upload
from sqlalchemy import update

from storage.access import Access
from storage.catalogue import Catalogue
from storage.clock import now
from storage.errors import (
    JobExpired,
    JobNotFinished,
    KeyReused,
    LeaseLost,
    MissingJob,
    MissingVolume,
    QuotaExceeded,
    UnknownKind,
    VolumeNotReady,
)
from storage.jobs import Artifact, Job, JobState, Queue, RequestKey, Sender, Submission
from storage.records import VolumeState
from storage.tables import jobs

SENDER = Sender("default", "key:1")
REQUEST = RequestKey("POST /v1/jobs", "k", "0" * 64)


def three() -> list[Submission]:
    return [Submission("measure", {"radius": radius}) for radius in (1, 2, 3)]


def test_a_request_is_done_once(catalogue: Catalogue) -> None:
    announce(catalogue)
    assert catalogue.submitted("default", REQUEST) is None
    first = catalogue.submit_all(three(), SENDER, REQUEST)
    assert not first.again
    assert [job.parameters["radius"] for job in first.jobs] == [1, 2, 3]
    assert sorted(job.id for job in first.jobs) == [job.id for job in first.jobs]
    catalogue.request_cancel(first.jobs[1].id)
    again = catalogue.submit_all(three(), SENDER, REQUEST)
    assert again.again
    assert again == catalogue.submitted("default", REQUEST)
    assert [job.id for job in again.jobs] == [job.id for job in first.jobs]
    assert again.jobs[1].state is JobState.CANCELLED
    assert len(catalogue.jobs()) == 3


def test_a_key_is_a_projects_and_a_requests_own(catalogue: Catalogue) -> None:
    announce(catalogue)
    made = catalogue.submit_all(three(), SENDER, REQUEST)
    other = replace(REQUEST, digest="1" * 64)
    for ask in (
        lambda: catalogue.submitted("default", other),
        lambda: catalogue.submit_all(three(), SENDER, other),
    ):
        with pytest.raises(KeyReused):
            ask()
    there = catalogue.submit_all(three(), SENDER, replace(other, address="POST /v1/jobs:batch"))
    assert not there.again
    elsewhere = catalogue.submit_all(three(), Sender("elsewhere"), other)
    assert {job.project_id for job in elsewhere.jobs} == {"elsewhere"}
    assert not {job.id for job in made.jobs} & {job.id for job in elsewhere.jobs}


@pytest.mark.parametrize("project_id", ["default", "known-to-nobody"])
def test_a_request_that_comes_many_times_at_once_is_done_once(catalogue: Catalogue, project_id: str) -> None:
    announce(catalogue)
    together = Barrier(6)

    def send(_: int) -> tuple[bool, list[str]]:
        together.wait()
        done = catalogue.submit_all(three(), Sender(project_id), REQUEST)
        return done.again, [job.id for job in done.jobs]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert sorted(again for again, _ in answers) == [False] + [True] * 5
    assert len({tuple(ids) for _, ids in answers}) == 1
    assert len(catalogue.jobs()) == 3


def _refused_volume(catalogue: Catalogue) -> str:
    volume, ingest = upload(catalogue)
    catalogue.request_cancel(ingest.id)
    return volume.id


@pytest.mark.parametrize(
    ("faulty", "error"),
    [
        (lambda catalogue: Submission("guess", {}), UnknownKind),
        (lambda catalogue: Submission("measure", {}, "vol_0"), MissingVolume),
        (lambda catalogue: Submission("measure", {}, _refused_volume(catalogue)), VolumeNotReady),
    ],
)
def test_one_that_does_not_fit_leaves_nothing(
    catalogue: Catalogue, faulty: Callable[[Catalogue], Submission], error: type[Exception]
) -> None:
    announce(catalogue)
    wrong = faulty(catalogue)
    before = catalogue.jobs()
    with pytest.raises(error):
        catalogue.submit_all([*three(), wrong], SENDER, REQUEST)
    assert catalogue.jobs() == before
    assert catalogue.submitted("default", REQUEST) is None
    assert len(catalogue.submit_all(three(), SENDER, REQUEST).jobs) == 3


def test_a_quota_counts_the_whole_request(catalogue: Catalogue) -> None:
    announce(catalogue)
    Access(catalogue.database).put_project("default", max_open_jobs=5)
    catalogue.submit_all(three(), SENDER)
    with pytest.raises(QuotaExceeded):
        catalogue.submit_all(three(), SENDER)
    assert len(catalogue.jobs()) == 3


def test_jobs_of_one_request_wait_each_for_its_own_scan(catalogue: Catalogue) -> None:
    announce(catalogue)
    ready, (validating, ingest) = ready_volume(catalogue), upload(catalogue)
    ids = [validating.id, ready.id, None, validating.id]
    made = catalogue.submit_all([Submission("measure", {}, volume_id) for volume_id in ids], SENDER).jobs
    assert [(job.volume_id, job.depends_on) for job in made] == [
        (validating.id, ingest.id),
        (ready.id, None),
        (None, None),
        (validating.id, ingest.id),
    ]
    assert catalogue.volume_states({ready.id, validating.id, "vol_0"}, project_id="default") == {
        ready.id: VolumeState.READY,
        validating.id: VolumeState.VALIDATING,
    }
    assert catalogue.volume_states({ready.id}, project_id="elsewhere") == {}


def test_a_retry_and_what_it_repeats_know_each_other(catalogue: Catalogue) -> None:
    job = running(catalogue)
    failed = catalogue.fail(job.id, 1, ERROR)
    (retry,) = catalogue.submit_all([Submission("measure", {}, retry_of=job.id)], SENDER).jobs
    after = catalogue.job(job.id)
    assert (retry.retry_of, after.retried_by) == (job.id, retry.id)
    assert (after.state, after.error, after.revision) == (JobState.FAILED, ERROR, failed.revision + 1)


def test_jobs_are_found_by_label_model_and_time(catalogue: Catalogue) -> None:
    announce(catalogue)
    first = catalogue.submit("measure", {"model": "job_7"}, labels={'a"b\\': 'c"$', "site": "x"})
    second = catalogue.submit("measure", {"model": "job_8"}, labels={"site": "x"})
    plain = catalogue.submit("measure", {"model": 7})
    ids = {first.id: "first", second.id: "second", plain.id: "plain"}

    def found(**wanted: object) -> list[str]:
        return [ids[job.id] for job in catalogue.jobs(**wanted)]  # type: ignore[arg-type]

    assert found(labels=[("site", "x")]) == ["second", "first"]
    assert found(labels=[("site", "x"), ('a"b\\', 'c"$')]) == ["first"]
    assert found(labels=[("site", "y")]) == []
    assert found(model="job_7") == ["first"]
    assert found(created_after=first.created_at) == ["plain", "second"]
    assert found(created_before=second.created_at) == ["first"]
    assert found(model="job_8", labels=[("site", "x")], kind="measure", project_id="default") == ["second"]


def test_a_line_tells_who_waits_and_who_works(catalogue: Catalogue) -> None:
    announce(catalogue, "measure", "count")
    other = replace(KIND, name="look", queue=Queue.INTERACTIVE)
    catalogue.announce("worker-2", [other], "cpu")
    done, busy = (catalogue.submit("measure", {}) for _ in range(2))
    for job in (done, busy):
        assert catalogue.claim(job.id, "worker-1", 60) is not None
    catalogue.finish(done.id, 1, {})
    _shift(catalogue, done, started_at=jobs.c.ended_at - 30)
    _shift(catalogue, busy, started_at=now() - 10)
    waiting = [catalogue.submit(kind, {}) for kind in ("measure", "count", "measure")]
    catalogue.submit("look", {})
    line = catalogue.line(Queue.BATCH, fresh_s=60)
    assert line.queued == tuple((job.id, job.kind) for job in waiting)
    ((kind, seconds),) = line.running
    assert (kind, 9 < seconds < 60) == ("measure", True)
    assert line.durations == {"measure": pytest.approx(30), None: pytest.approx(30)}
    assert line.workers == 1
    assert catalogue.line(Queue.BATCH, fresh_s=-1).workers == 0
    assert catalogue.line(Queue.TRAIN, fresh_s=60).queued == ()


def _shift(catalogue: Catalogue, job: Job, **values: object) -> None:
    with catalogue.database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))


def test_removed_jobs_leave_tombstones(catalogue: Catalogue) -> None:
    job = queued(catalogue)
    with pytest.raises(JobNotFinished):
        catalogue.remove_job(job.id)
    catalogue.request_cancel(job.id)
    catalogue.remove_job(job.id)
    for ask in (
        lambda: catalogue.job(job.id),
        lambda: catalogue.job(job.id, project_id="default"),
        lambda: catalogue.remove_job(job.id),
        lambda: catalogue.request_cancel(job.id),
    ):
        with pytest.raises(JobExpired):
            ask()
    with pytest.raises(MissingJob) as elsewhere:
        catalogue.job(job.id, project_id="elsewhere")
    assert not isinstance(elsewhere.value, JobExpired)
    with pytest.raises(MissingJob):
        catalogue.remove_job("job_0")
    assert catalogue.jobs() == []
    assert catalogue.uncleared() == [job.id]
    catalogue.cleared([job.id])
    assert catalogue.uncleared() == []


def test_only_old_ended_jobs_without_a_model_expire(catalogue: Catalogue) -> None:
    announce(catalogue)
    model = Artifact("model.safetensors", 1, "0" * 64, "application/octet-stream")
    like = replace(model, name="my-model.safetensors")
    old, recent, modelled, alike, still_open = (catalogue.submit("measure", {}) for _ in range(5))
    for job, artifacts in ((old, ()), (recent, ()), (modelled, (model,)), (alike, (like,))):
        catalogue.claim(job.id, "worker-1", 60)
        catalogue.finish(job.id, 1, {}, artifacts=artifacts)
    for job in (old, modelled, alike):
        _shift(catalogue, job, ended_at=jobs.c.ended_at - 1000)
    _shift(catalogue, still_open, created_at=jobs.c.created_at - 1000)
    assert catalogue.expire(500) == 2
    assert catalogue.expire(500) == 0
    assert {job.id for job in catalogue.jobs()} == {recent.id, modelled.id, still_open.id}
    assert sorted(catalogue.uncleared()) == sorted([old.id, alike.id])


def test_a_late_worker_cannot_finish_a_removed_job(catalogue: Catalogue) -> None:
    job = running(catalogue)
    catalogue.request_cancel(job.id)
    catalogue.cancelled(job.id, 1)
    catalogue.remove_job(job.id)
    with pytest.raises(LeaseLost):
        catalogue.finish(job.id, 1, {})
    with pytest.raises(JobExpired):
        catalogue.job(job.id)


def test_requests_are_forgotten_and_their_removed_jobs_are_told(catalogue: Catalogue) -> None:
    announce(catalogue)
    (job, *_) = catalogue.submit_all(three(), SENDER, REQUEST).jobs
    catalogue.request_cancel(job.id)
    catalogue.remove_job(job.id)
    with pytest.raises(JobExpired):
        catalogue.submitted("default", REQUEST)
    assert catalogue.forget_requests(60) == 0
    assert catalogue.forget_requests(-1) == 1
    assert catalogue.submitted("default", REQUEST) is None


def test_two_sweepers_expire_each_job_once(url: str) -> None:
    with Catalogue.open(url) as catalogue:
        announce(catalogue)
        made = catalogue.submit_all(three() * 20, SENDER).jobs
        for job in made:
            catalogue.request_cancel(job.id)
        together = Barrier(2)

        def expire(_: int) -> int:
            together.wait()
            return catalogue.expire(-1)

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(expire, range(2))) == len(made)
        assert len(catalogue.uncleared()) == len(made)
