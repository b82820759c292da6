"""A worker that is paused past its lease, and one that comes back as a zombie: its word counts no more."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.fixtures import StartWorker
from support.processes import Bell, Worker, until
from support.scans import files_below, nifti, upload

from storage.catalogue import Catalogue
from storage.jobs import JobState
from storage.tidy import store_key
from storage.volume import Volume

LEASE_S = 1.0
BRIEFLY_S = 0.2
SHAPE = (160, 192, 160)
LEVELS = [0, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("level", LEVELS)
def test_the_second_worker_s_result_stands(
    level: int, truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Paused while it writes this level of the volume."""
    workers: dict[str, Worker] = {
        f"{name}@test": start_worker("workers.app", name, lease_s=LEASE_S) for name in ("w1", "w2")
    }
    until(lambda: len(truth.workers()) == len(workers))
    volume, job = upload(truth, tmp_path, nifti(SHAPE))
    bell.ring(job)
    until((tmp_path / store_key(volume.id, 1) / str(level) / "c").exists, pause_s=0.002)
    job = truth.job(job.id)
    paused = workers[str(job.worker)]
    pause_between_writes(paused, tmp_path / "catalogue.db")
    assert truth.job(job.id).state is JobState.RUNNING
    ended = bell.succeeded(job)
    assert (ended.attempt, ended.worker != job.worker) == (2, True)
    ready = truth.volume(volume.id)

    paused.resume()
    until(lambda: f"job {job.id}: lost to another worker" in paused.log())
    assert truth.job(job.id) == ended
    assert truth.volume(volume.id) == ready
    assert ready.stored is not None
    assert ready.store == store_key(volume.id, 2)
    assert files_below(tmp_path / "volumes" / volume.id) == ["2.zarr"]
    Volume.open(tmp_path / ready.store, ready.stored.digest).verify()
    after = truth.submit("embed", {"rank": 3, "held_out": 100}, volume_id=volume.id)
    bell.ring(after)
    bell.succeeded(after)


def pause_between_writes(worker: Worker, database: Path) -> None:
    """Pause it where it holds no lock of SQLite's: nobody could write until it goes on."""
    worker.pause()
    while locked(database):
        worker.resume()
        time.sleep(BRIEFLY_S / 10)
        worker.pause()


def locked(database: Path) -> bool:
    """Whether a process holds the lock for writing, and does not give it back."""
    with closing(sqlite3.connect(database, timeout=BRIEFLY_S)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.rollback()
        return False
