"""What removed jobs wrote, removed too. A volume that a job made is not the job's any more, and stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from storage.catalogue import Catalogue

FOLDERS = ("artifacts", "checkpoints", "logs")
"""Where jobs have folders, or files, of their ids."""


def clear(data_root: Path, catalogue: Catalogue, job_ids: Iterable[str]) -> None:
    """Remove the files of removed jobs, and record that they are gone. Safe from any process, and twice."""
    gone = [job_id for job_id in job_ids if _is_clear(data_root, job_id)]
    if gone:
        catalogue.cleared(gone)


def clear_all(data_root: Path, catalogue: Catalogue) -> None:
    """Remove what is still there of jobs that have been removed."""
    clear(data_root, catalogue, catalogue.uncleared())


def _is_clear(data_root: Path, job_id: str) -> bool:
    """Remove all that a job wrote; whether nothing is left."""
    folders = [data_root / name for name in FOLDERS]
    places = [place for folder in folders for place in (folder / job_id, *folder.glob(f"{job_id}.*"))]
    for place in places:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    return not any(place.exists() for place in places)
