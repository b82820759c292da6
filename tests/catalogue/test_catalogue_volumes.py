"""Volumes: made with their ingest job, made ready by it, rejected with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from catalogue_examples import ERROR, STORED, announce, ready_volume, upload

from storage.catalogue import Catalogue
from storage.errors import JobCancelled, LeaseLost, MissingVolume, VolumeNotReady
from storage.ids import derived_id
from storage.jobs import JobState
from storage.records import Derivation, DerivedVolume, VolumeState


def test_a_volume_is_created_with_its_ingest_job(catalogue: Catalogue) -> None:
    volume, job = upload(catalogue)
    assert volume == catalogue.volume(volume.id)
    assert (volume.state, volume.ingest_job, volume.source_bytes) == (VolumeState.VALIDATING, job.id, 1234)
    assert (job.kind, job.state, job.volume_id) == ("ingest", JobState.QUEUED, volume.id)
    assert job.parameters == {"scan_format": "nifti"}
    assert catalogue.job(job.id) == job


def test_finishing_the_ingest_makes_the_volume_ready_and_keeps_every_bit_of_its_geometry(
    catalogue: Catalogue,
) -> None:
    volume = ready_volume(catalogue)
    assert volume.state is VolumeState.READY
    assert volume.stored == STORED
    assert volume.store == f"volumes/{volume.id}/1.zarr"
    assert volume.revision == 1


def test_a_failed_ingest_rejects_its_volume_with_the_same_error(catalogue: Catalogue) -> None:
    announce(catalogue)
    volume, job = upload(catalogue)
    waiting = catalogue.submit("measure", {}, volume_id=volume.id)
    catalogue.claim(job.id, "worker-1", 30)
    catalogue.fail(job.id, 1, ERROR)
    rejected = catalogue.volume(volume.id)
    assert (rejected.state, rejected.error) == (VolumeState.REJECTED, ERROR)
    failed = catalogue.job(waiting.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert (failed.error["code"], failed.error["cause"]) == ("volume-rejected", ERROR)
    assert failed.ended_at is not None


def test_a_cancelled_ingest_rejects_its_volume(catalogue: Catalogue) -> None:
    volume, job = upload(catalogue)
    catalogue.request_cancel(job.id)
    rejected = catalogue.volume(volume.id)
    assert rejected.state is VolumeState.REJECTED
    assert rejected.error is not None
    assert rejected.error["code"] == "cancelled"


def test_a_job_on_a_validating_volume_waits_for_it(catalogue: Catalogue) -> None:
    announce(catalogue)
    volume, ingest = upload(catalogue)
    job = catalogue.submit("measure", {}, volume_id=volume.id)
    assert (job.state, job.depends_on) == (JobState.WAITING, ingest.id)
    assert catalogue.claim(job.id, "worker-1", 30) is None
    catalogue.claim(ingest.id, "worker-1", 30)
    catalogue.finish(ingest.id, 1, {}, volume=STORED, store="volumes/x/1.zarr")
    assert catalogue.job(job.id).state is JobState.QUEUED
    assert [due.id for due in catalogue.sweep()] == [job.id]
    assert catalogue.claim(job.id, "worker-1", 30) is not None


def test_only_validating_and_ready_volumes_take_jobs(catalogue: Catalogue) -> None:
    announce(catalogue)
    ready = ready_volume(catalogue)
    assert catalogue.submit("measure", {}, volume_id=ready.id).state is JobState.QUEUED
    closed = catalogue.quarantine(ready.id, ERROR)
    assert (closed.state, closed.error) == (VolumeState.QUARANTINED, ERROR)
    rejected, ingest = upload(catalogue)
    catalogue.request_cancel(ingest.id)
    for volume_id, state in ((ready.id, "quarantined"), (rejected.id, "rejected")):
        with pytest.raises(VolumeNotReady) as refusal:
            catalogue.submit("measure", {}, volume_id=volume_id)
        assert refusal.value.state == state


def test_an_error_may_close_the_volume_but_never_that_of_a_late_attempt(catalogue: Catalogue) -> None:
    announce(catalogue)
    volume = ready_volume(catalogue)
    job = catalogue.submit("measure", {}, volume_id=volume.id)
    catalogue.claim(job.id, "worker-1", -1)
    catalogue.claim(job.id, "worker-2", 30)
    with pytest.raises(LeaseLost):
        catalogue.fail(job.id, 1, ERROR, quarantine=True)
    assert catalogue.volume(volume.id) == volume
    catalogue.fail(job.id, 2, ERROR, quarantine=True)
    closed = catalogue.volume(volume.id)
    assert (closed.state, closed.error) == (VolumeState.QUARANTINED, ERROR)


def test_quarantine_closes_ready_volumes_only(catalogue: Catalogue) -> None:
    volume, _ = upload(catalogue)
    assert catalogue.quarantine(volume.id, ERROR).state is VolumeState.VALIDATING


def test_unknown_volumes(catalogue: Catalogue) -> None:
    announce(catalogue)
    for ask in (
        lambda: catalogue.volume("vol_x"),
        lambda: catalogue.quarantine("vol_x", ERROR),
        lambda: catalogue.submit("measure", {}, volume_id="vol_x"),
    ):
        with pytest.raises(MissingVolume):
            ask()


def test_volumes_are_listed_newest_first_page_by_page(catalogue: Catalogue) -> None:
    made = [upload(catalogue, f"scan {index}")[0].id for index in range(5)]
    pages = [catalogue.volumes(limit=2)]
    while pages[-1]:
        pages.append(catalogue.volumes(limit=2, before=pages[-1][-1].id))
    assert [volume.id for page in pages for volume in page] == made[::-1]


def derived_of(volume_id: str) -> DerivedVolume:
    stored = replace(
        STORED, digest="sha256:" + "a" * 64, derived=Derivation(volume_id, STORED.digest, "measure")
    )
    return DerivedVolume("scan, measured", stored, "volumes/x/1.zarr")


def test_a_job_publishes_the_volume_that_it_derived_with_its_result(catalogue: Catalogue) -> None:
    announce(catalogue)
    source = ready_volume(catalogue)
    job = catalogue.submit("measure", {}, volume_id=source.id)
    catalogue.claim(job.id, "worker-1", 30)
    with pytest.raises(MissingVolume):
        catalogue.volume(derived_id(job.id))
    made = derived_of(source.id)
    catalogue.finish(job.id, 1, {}, derived=made)
    volume = catalogue.volume(derived_id(job.id))
    assert (volume.state, volume.ingest_job, volume.stored) == (VolumeState.READY, job.id, made.stored)
    assert (volume.name, volume.store) == (made.name, made.store)
    assert (volume.source_bytes, volume.source_sha256) == (4 * 5 * 6 * 2, "a" * 64)
    assert catalogue.submit("measure", {}, volume_id=volume.id).state is JobState.QUEUED


def test_a_derived_volume_of_a_cancelled_or_lost_attempt_is_not_published(catalogue: Catalogue) -> None:
    announce(catalogue)
    source = ready_volume(catalogue)
    asked, lost = (catalogue.submit("measure", {}, volume_id=source.id) for _ in range(2))
    catalogue.claim(asked.id, "worker-1", 30)
    catalogue.request_cancel(asked.id)
    with pytest.raises(JobCancelled):
        catalogue.finish(asked.id, 1, {}, derived=derived_of(source.id))
    catalogue.claim(lost.id, "worker-1", -1)
    catalogue.claim(lost.id, "worker-2", 30)
    with pytest.raises(LeaseLost):
        catalogue.finish(lost.id, 1, {}, derived=derived_of(source.id))
    assert [volume.id for volume in catalogue.volumes()] == [source.id]
