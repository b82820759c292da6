"""Upload sessions on both databases: states, expiry, objects, and the one step that makes a volume."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from catalogue_examples import announce, ready_volume, upload
from sqlalchemy import update

from storage.access import Access
from storage.catalogue import Catalogue
from storage.clock import now
from storage.errors import MissingVolume, QuotaExceeded, ScanTooLarge, StorageError
from storage.jobs import JobState
from storage.records import Received
from storage.sent_objects import Objects, SentObject
from storage.tables import uploads
from storage.upload_errors import (
    MissingUpload,
    ObjectDiffers,
    UploadFinished,
    UploadGone,
    VolumeInUse,
)
from storage.upload_sessions import UploadKind, UploadSession, UploadSessions, UploadState

ONE = SentObject(10, "a" * 64)


@pytest.fixture
def sessions(catalogue: Catalogue) -> UploadSessions:
    """Those of an empty catalogue."""
    return UploadSessions(catalogue.database)


def begin(sessions: UploadSessions, length: int | None = 100, **changes: Any) -> UploadSession:
    wanted = {"project_id": "default", "name": "scan", **changes}
    return sessions.open(UploadKind.TUS if length else UploadKind.ZARR, length=length, **wanted)


def make_late(catalogue: Catalogue, session: UploadSession, by_s: float = 1.0) -> None:
    with catalogue.database.writing() as connection:
        connection.execute(update(uploads).where(uploads.c.id == session.id).values(expires_at=now() - by_s))


def finished(sessions: UploadSessions, session: UploadSession) -> str:
    def bring(_: Objects) -> tuple[Received, str]:
        return Received(session.future_volume, Path("x"), 100, "f" * 64), "nifti"

    volume, job = sessions.finish(session.id, bring, "somebody")
    assert (job.volume_id, job.submitted_by, job.state) == (volume.id, "somebody", JobState.QUEUED)
    return volume.id


def test_a_session_counts_what_arrives_and_becomes_a_volume(
    catalogue: Catalogue, sessions: UploadSessions
) -> None:
    session = begin(sessions, facts={"sha256": "b" * 64})
    assert (session.state, session.received, session.facts) == (UploadState.OPEN, 0, {"sha256": "b" * 64})
    assert sessions.promised_bytes() == 100
    assert sessions.advance(session.id, 60).received == 60
    assert sessions.promised_bytes() == 40
    volume_id = finished(sessions, session)
    assert volume_id == session.future_volume
    after = sessions.session(session.id)
    assert (after.state, after.volume_id, after.received) == (UploadState.COMPLETE, volume_id, 100)
    assert catalogue.volume(volume_id).name == "scan"
    assert sessions.promised_bytes() == 0
    for use in (lambda: sessions.advance(session.id, 70), lambda: sessions.abort(session.id)):
        with pytest.raises(UploadFinished):
            use()


def test_what_bringing_raises_leaves_everything_as_it_was(
    catalogue: Catalogue, sessions: UploadSessions
) -> None:
    session = begin(sessions)

    def bring(_: Objects) -> tuple[Received, str]:
        raise StorageError("no")

    with pytest.raises(StorageError):
        sessions.finish(session.id, bring)
    assert sessions.session(session.id).state is UploadState.OPEN
    with pytest.raises(MissingVolume):
        catalogue.volume(session.future_volume)


def test_of_many_that_finish_a_session_one_does(catalogue: Catalogue, sessions: UploadSessions) -> None:
    session = begin(sessions)

    def attempt(_: int) -> bool:
        try:
            finished(sessions, session)
        except UploadFinished:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(6))) == 1
    assert len(catalogue.volumes()) == 1


def test_objects_count_once_however_often_they_are_entered(sessions: UploadSessions) -> None:
    session, placed = begin(sessions, None), []

    def enter(_: int) -> bool:
        return sessions.keep_object(session.id, "c/0", ONE, lambda: placed.append(1))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(enter, range(6))) == 1
    assert placed == [1]
    after = sessions.session(session.id)
    assert (after.received, after.objects) == (10, 1)
    assert sessions.objects(session.id) == {"c/0": ONE}
    with pytest.raises(ObjectDiffers):
        sessions.keep_object(session.id, "c/0", SentObject(10, "b" * 64), lambda: None)


def test_objects_beyond_the_announced_length_are_refused(sessions: UploadSessions) -> None:
    session = begin(sessions, 15)
    sessions.keep_object(session.id, "c/0", ONE, lambda: None)
    with pytest.raises(ScanTooLarge):
        sessions.keep_object(session.id, "c/1", ONE, lambda: None)


def test_an_object_that_finds_no_place_is_not_entered(sessions: UploadSessions) -> None:
    session = begin(sessions, None)

    def place() -> None:
        raise StorageError("no")

    with pytest.raises(StorageError):
        sessions.keep_object(session.id, "c/0", ONE, place)
    assert (sessions.objects(session.id), sessions.session(session.id).received) == ({}, 0)


def test_late_sessions_expire_and_are_forgotten_in_the_end(
    catalogue: Catalogue, sessions: UploadSessions
) -> None:
    late, fresh, done = (begin(sessions) for _ in range(3))
    finished(sessions, done)
    make_late(catalogue, late)
    assert sessions.session(late.id).state is UploadState.EXPIRED
    with pytest.raises(UploadGone):
        sessions.advance(late.id, 5)
    sessions.expire()
    assert sessions.open_ids() == {fresh.id}
    make_late(catalogue, late, 8 * 86_400)
    make_late(catalogue, done, 8 * 86_400)
    sessions.expire()
    for session in (late, done):
        with pytest.raises(MissingUpload):
            sessions.session(session.id)
    assert catalogue.volume(done.future_volume)


def test_an_aborted_session_says_why(sessions: UploadSessions) -> None:
    session = begin(sessions)
    sessions.abort(session.id, {"code": "invalid-scan", "detail": "damaged"})
    with pytest.raises(UploadGone, match="damaged"):
        sessions.session(session.id).require_open()
    with pytest.raises(UploadGone):
        sessions.abort(session.id)


def test_sessions_belong_to_projects(catalogue: Catalogue, sessions: UploadSessions) -> None:
    Access(catalogue.database).put_project("other")
    session = begin(sessions, project_id="other")
    assert sessions.session(session.id, project_id="other") == session
    with pytest.raises(MissingUpload):
        sessions.session(session.id, project_id="default")
    with pytest.raises(MissingUpload):
        sessions.session("upl_x")


def test_a_quota_counts_volumes_and_open_uploads(catalogue: Catalogue, sessions: UploadSessions) -> None:
    Access(catalogue.database).put_project("default", max_bytes=2000)
    upload(catalogue)  # 1234 bytes
    session = begin(sessions, 700)
    for wanted in (lambda: begin(sessions, 100), lambda: upload(catalogue)):
        with pytest.raises(QuotaExceeded):
            wanted()
    zarr = begin(sessions, None)
    sessions.keep_object(zarr.id, "c/0", SentObject(60, "a" * 64), lambda: None)
    with pytest.raises(QuotaExceeded):
        sessions.keep_object(zarr.id, "c/1", SentObject(60, "a" * 64), lambda: None)
    sessions.abort(session.id)
    begin(sessions, 700 - 60)
    with pytest.raises(QuotaExceeded) as refusal:
        sessions.require_room("default", 100)
    assert (refusal.value.present, refusal.value.allowed) == (1234 + 60 + 640, 2000)
    sessions.require_room("another", 1 << 40)


def test_uploads_that_race_stay_within_the_quota(catalogue: Catalogue, sessions: UploadSessions) -> None:
    Access(catalogue.database).put_project("default", max_bytes=350)

    def attempt(_: int) -> bool:
        try:
            begin(sessions, 100)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 3


# Deleting volumes


def test_a_deleted_volume_is_not_there_any_more_and_counts_no_more(catalogue: Catalogue) -> None:
    Access(catalogue.database).put_project("default", max_bytes=2000)
    volume = ready_volume(catalogue)
    catalogue.delete_volume(volume.id, project_id="default")
    for use in (
        lambda: catalogue.volume(volume.id),
        lambda: catalogue.delete_volume(volume.id),
        lambda: catalogue.delete_volume("vol_x"),
    ):
        with pytest.raises(MissingVolume):
            use()
    assert catalogue.volumes() == []
    assert [found.id for found in catalogue.deleted_volumes()] == [volume.id]
    upload(catalogue)
    catalogue.removed_bytes(volume.id)
    assert catalogue.deleted_volumes() == []


def test_a_volume_of_another_project_cannot_be_deleted(catalogue: Catalogue) -> None:
    volume = ready_volume(catalogue)
    with pytest.raises(MissingVolume):
        catalogue.delete_volume(volume.id, project_id="other", force=True)
    assert catalogue.volume(volume.id) == volume


def test_jobs_that_use_a_volume_keep_it_or_are_cancelled(catalogue: Catalogue) -> None:
    announce(catalogue)
    volume = ready_volume(catalogue)
    running, queued = (catalogue.submit("measure", {}, volume_id=volume.id) for _ in range(2))
    cohort = catalogue.submit("measure", {"rows": [{"volume_id": volume.id, "target": 1.0}]})
    catalogue.claim(running.id, "worker-1", 30)
    with pytest.raises(VolumeInUse) as refusal:
        catalogue.delete_volume(volume.id)
    assert sorted(refusal.value.jobs) == sorted([running.id, queued.id, cohort.id])
    assert catalogue.volume(volume.id) == volume
    catalogue.delete_volume(volume.id, force=True)
    states = [catalogue.job(job.id).state for job in (running, queued, cohort)]
    assert states == [JobState.CANCELLING, JobState.CANCELLED, JobState.CANCELLED]
    assert catalogue.deleted_volumes() == []  # its bytes stay while the worker reads them
    catalogue.cancelled(running.id, 1)
    assert [found.id for found in catalogue.deleted_volumes()] == [volume.id]


def test_a_volume_that_is_still_read_can_be_deleted_by_force(catalogue: Catalogue) -> None:
    volume, ingest = upload(catalogue)
    with pytest.raises(VolumeInUse):
        catalogue.delete_volume(volume.id)
    catalogue.delete_volume(volume.id, force=True)
    assert catalogue.job(ingest.id).state is JobState.CANCELLED
    with pytest.raises(MissingVolume):
        catalogue.volume(volume.id)
