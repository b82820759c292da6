"""Which files belong to nobody, by the word of the catalogue, and their removal.

Attempts that died leave files behind, and nothing refers to them: only a row makes a folder a volume or an
artifact. Removal is safe at any time, from any process, and twice.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from storage.arriving import FOLDER as ARRIVING
from storage.catalogue import INGEST, Catalogue
from storage.checkpoints import checkpoint_folder
from storage.errors import MissingJob, MissingVolume
from storage.ids import derived_id
from storage.jobs import OWNED, TERMINAL, Job, JobState
from storage.upload_sessions import UploadSessions

ABANDONED_S = 86_400.0
"""An upload that no volume knows is taken for one on its way until it is this old."""
RECENT = 200


def store_key(volume_id: str, attempt: int) -> str:
    """Where an attempt of a job that makes a volume writes it, below the data root."""
    return f"volumes/{volume_id}/{attempt}.zarr"


def upload_path(data_root: Path, volume_id: str) -> Path:
    """Where a volume's upload lies until its ingest has ended."""
    return data_root / "uploads" / volume_id


def tidy_job(data_root: Path, job: Job) -> None:
    """Remove what earlier, failed or lost attempts of a job wrote; of an ended one its checkpoints too, and
    an ingest's upload.
    """
    for folder in _attempts(data_root / "artifacts" / job.id, r"(\d+)", job):
        shutil.rmtree(folder, ignore_errors=True)
    if job.state.terminal:
        shutil.rmtree(checkpoint_folder(data_root, job.id), ignore_errors=True)
    made = job.volume_id if job.kind == INGEST else derived_id(job.id)
    if made is not None:
        for folder in _attempts(data_root / "volumes" / made, r"(\d+)\.zarr", job):
            shutil.rmtree(folder, ignore_errors=True)
    if job.kind == INGEST and job.volume_id is not None and job.state.terminal:
        remove(upload_path(data_root, job.volume_id))


def tidy(data_root: Path, catalogue: Catalogue) -> None:
    """Remove what lost workers left: of jobs that ended of late, and of uploads that nobody awaits; and the
    bytes of volumes that were deleted.
    """
    for state in TERMINAL:
        for job in catalogue.jobs(state=state, limit=RECENT):
            tidy_job(data_root, job)
    for upload in _files(data_root / "uploads"):
        try:
            ingest = catalogue.job(catalogue.volume(upload.name).ingest_job)
        except (MissingVolume, MissingJob):
            _remove_if_old(upload)
        else:
            tidy_job(data_root, ingest)
    _tidy_arriving(data_root, UploadSessions(catalogue.database))
    _tidy_deleted(data_root, catalogue)


def remove(path: Path) -> None:
    """Remove a file or a folder; harmless where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _tidy_arriving(data_root: Path, sessions: UploadSessions) -> None:
    """Remove what arrived of uploads that have ended, and of those that nobody knows."""
    sessions.expire()
    arrived = _files(data_root / ARRIVING)  # before the question: a session begun since then has its row
    awaited = sessions.open_ids()
    for folder in arrived:
        if folder.name not in awaited:
            remove(folder)


def _tidy_deleted(data_root: Path, catalogue: Catalogue) -> None:
    for volume in catalogue.deleted_volumes():
        shutil.rmtree(data_root / "volumes" / volume.id, ignore_errors=True)
        catalogue.removed_bytes(volume.id)


def _attempts(folder: Path, pattern: str, job: Job) -> Iterator[Path]:
    """The folders of attempts that can no longer publish and have not published."""
    for path in _files(folder):
        match = re.fullmatch(pattern, path.name)
        if match and _is_over(int(match[1]), job):
            yield path
    if job.state.terminal:
        with contextlib.suppress(OSError):  # it is not there, or the published attempt is in it
            folder.rmdir()


def _is_over(attempt: int, job: Job) -> bool:
    """A later attempt than the row's may have begun since the row was read: it is never over."""
    if attempt == job.attempt:
        return job.state is not JobState.SUCCEEDED and job.state not in OWNED
    return attempt < job.attempt


def _remove_if_old(upload: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has arrived, or was given up, in this moment
        if time.time() - upload.stat().st_mtime > ABANDONED_S:
            remove(upload)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
