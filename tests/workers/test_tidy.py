"""Rubbish: what attempts that died leave behind goes, everything else stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from support.scans import files_below, upload

from storage.artifacts import ArtifactStore
from storage.catalogue import Catalogue
from storage.checkpoints import Checkpoints, checkpoint_folder
from storage.ids import derived_id
from storage.jobs import JobKind, Queue
from storage.tidy import ABANDONED_S, store_key, tidy, tidy_job


def leave_stores(root: Path, volume_id: str, *attempts: int) -> None:
    for attempt in attempts:
        (root / store_key(volume_id, attempt)).mkdir(parents=True)


def test_a_running_attempt_and_later_ones_are_left_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    volume, job = upload(catalogue, tmp_path, b"scan")
    catalogue.claim(job.id, "w", -1)
    second = catalogue.claim(job.id, "w", 30)
    assert second is not None
    leave_stores(tmp_path, volume.id, 1, 2, 3)
    ArtifactStore(tmp_path / "artifacts").writer(job.id, 1).write_json("a.json", {})
    tidy_job(tmp_path, second)
    assert files_below(tmp_path / "volumes", "*/*") == [f"{volume.id}/2.zarr", f"{volume.id}/3.zarr"]
    assert files_below(tmp_path / "artifacts", "*/*/*") == []
    assert files_below(tmp_path / "uploads") == [volume.id]


def test_what_lost_workers_left_goes(catalogue: Catalogue, tmp_path: Path) -> None:
    lost, job = upload(catalogue, tmp_path, b"scan")
    for _ in range(3):
        catalogue.claim(job.id, "w", -1)
    catalogue.sweep()
    leave_stores(tmp_path, lost.id, 1, 2, 3)
    waiting, _ = upload(catalogue, tmp_path, b"scan")
    tidy(tmp_path, catalogue)
    assert files_below(tmp_path / "volumes") == []
    assert files_below(tmp_path / "uploads") == [waiting.id]


def test_only_the_published_attempt_of_an_ended_job_is_kept(catalogue: Catalogue, tmp_path: Path) -> None:
    """Also when a lost worker woke up, wrote on, and died, after the job had ended."""
    volume, job = upload(catalogue, tmp_path, b"scan")
    catalogue.claim(job.id, "w", -1)
    catalogue.claim(job.id, "w", 30)
    catalogue.finish(job.id, 2, {}, store=store_key(volume.id, 2))
    leave_stores(tmp_path, volume.id, 1, 2)
    tidy(tmp_path, catalogue)
    assert files_below(tmp_path / "volumes", "*/*") == [f"{volume.id}/2.zarr"]
    assert files_below(tmp_path / "uploads") == []


def test_the_folder_that_a_running_attempt_has_just_made_is_kept(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    volume, job = upload(catalogue, tmp_path, b"scan")
    catalogue.claim(job.id, "w", 30)
    (tmp_path / "volumes" / volume.id).mkdir(parents=True)
    tidy(tmp_path, catalogue)
    assert files_below(tmp_path / "volumes") == [volume.id]


def test_an_upload_on_its_way_is_kept_for_a_day(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name, age_s in (("vol_new.part", 60.0), ("vol_old.part", ABANDONED_S + 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    tidy(tmp_path, catalogue)
    assert files_below(folder) == ["vol_new.part"]


def test_checkpoints_outlive_attempts_and_go_with_the_job(catalogue: Catalogue, tmp_path: Path) -> None:
    _, job = upload(catalogue, tmp_path, b"scan")
    catalogue.claim(job.id, "w", -1)
    first = Checkpoints(checkpoint_folder(tmp_path, job.id), 1)
    first.part("fold-0").save({}, {"done": True})
    second = catalogue.claim(job.id, "w", 30)
    assert second is not None
    tidy_job(tmp_path, second)
    retried = catalogue.fail(
        job.id, 2, {"code": "storage-full", "detail": "", "retryable": True}, retry_pause_s=0
    )
    tidy_job(tmp_path, retried)
    assert first.part("fold-0").load() is not None
    catalogue.request_cancel(job.id)
    tidy(tmp_path, catalogue)
    assert files_below(tmp_path / "checkpoints") == []


def test_what_dead_attempts_derived_goes_and_what_was_published_stays(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    catalogue.announce("w", [JobKind("probe", "1", "", "", Queue.BATCH, {}, {})], "cpu")
    job = catalogue.submit("probe", {})
    made = derived_id(job.id)
    catalogue.claim(job.id, "w", -1)
    second = catalogue.claim(job.id, "w", 30)
    assert second is not None
    leave_stores(tmp_path, made, 1, 2)
    tidy_job(tmp_path, second)
    assert files_below(tmp_path / "volumes", "*/*") == [f"{made}/2.zarr"]
    catalogue.finish(job.id, 2, {})
    tidy(tmp_path, catalogue)
    assert files_below(tmp_path / "volumes", "*/*") == [f"{made}/2.zarr"]
