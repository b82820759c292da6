"""The sweep: it takes jobs back from lost workers, and rings again, ever more rarely."""

from __future__ import annotations

import pytest
from catalogue_examples import announce, queued, running, upload
from sqlalchemy import create_engine, update

from storage.catalogue import Catalogue
from storage.errors import LeaseLost
from storage.jobs import JobState
from storage.records import VolumeState
from storage.tables import jobs


def _age_rings(url: str, seconds: float) -> None:
    """Let every ring be `seconds` older than it is."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(update(jobs).values(rung_at=jobs.c.rung_at - seconds))
    engine.dispose()


def test_an_expired_lease_is_queued_again_and_rung_for_at_once(catalogue: Catalogue) -> None:
    job = running(catalogue, lease_s=-1)
    assert [due.id for due in catalogue.sweep()] == [job.id]
    back = catalogue.job(job.id)
    assert (back.state, back.attempt, back.worker, back.lease_until) == (JobState.QUEUED, 1, None, None)
    with pytest.raises(LeaseLost):
        catalogue.finish(job.id, 1, {})


def test_a_living_lease_is_left_alone(catalogue: Catalogue) -> None:
    job = running(catalogue, lease_s=30)
    assert catalogue.sweep(ring_after_s=0) == []
    assert catalogue.job(job.id) == job


def test_a_job_that_loses_every_worker_fails(catalogue: Catalogue) -> None:
    volume, job = upload(catalogue)
    for attempt in (1, 2, 3):
        claimed = catalogue.claim(job.id, "worker-1", -1)
        assert claimed is not None
        assert claimed.attempt == attempt
        catalogue.sweep()
    assert catalogue.claim(job.id, "worker-1", 30) is None
    failed = catalogue.job(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "worker-lost"
    rejected = catalogue.volume(volume.id)
    assert (rejected.state, rejected.error) == (VolumeState.REJECTED, failed.error)


def test_a_cancelling_job_whose_worker_is_lost_is_cancelled(catalogue: Catalogue) -> None:
    job = running(catalogue, lease_s=-1)
    catalogue.request_cancel(job.id)
    assert catalogue.claim(job.id, "worker-2", 30) is None
    assert catalogue.sweep() == []
    assert catalogue.job(job.id).state is JobState.CANCELLED


def test_a_ring_is_repeated_only_after_its_pause_which_doubles(catalogue: Catalogue, url: str) -> None:
    job = queued(catalogue)
    catalogue.rang([job.id])
    for pause in (30, 60, 120, 240, 480, 600, 600):
        _age_rings(url, pause - 5)
        assert catalogue.sweep(ring_after_s=30) == []
        _age_rings(url, 5)
        assert [due.id for due in catalogue.sweep(ring_after_s=30)] == [job.id]
        assert catalogue.sweep(ring_after_s=30) == []
        catalogue.rang([job.id])


def test_a_ring_that_the_broker_did_not_take_is_repeated_soon(catalogue: Catalogue, url: str) -> None:
    job = queued(catalogue)
    assert catalogue.sweep() == []
    for _ in range(3):
        _age_rings(url, 6)
        assert [due.id for due in catalogue.sweep()] == [job.id]
        assert catalogue.sweep() == []


def test_a_second_sweeper_gets_nothing_that_the_first_was_given(catalogue: Catalogue, url: str) -> None:
    running(catalogue, lease_s=-1)
    with Catalogue.open(url) as other:
        assert len(catalogue.sweep()) == 1
        assert other.sweep() == []


def test_ended_and_waiting_jobs_are_never_rung_for(catalogue: Catalogue) -> None:
    announce(catalogue)
    volume, ingest = upload(catalogue)
    catalogue.submit("measure", {}, volume_id=volume.id)
    done = queued(catalogue)
    catalogue.request_cancel(done.id)
    assert [due.id for due in catalogue.sweep(ring_after_s=0)] == [ingest.id]
