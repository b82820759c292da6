"""What lies in a data root and belongs to nobody, by the word of the catalogue; and its removal.

Safe while the service works: names are never given twice, only what has been left alone for a day counts, and
files are listed before anybody is asked about them: sessions and jobs first, then the volumes that they
become. Only names that this service gives are looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Row, Select, select

from storage.arriving import FOLDER as ARRIVING
from storage.catalogue import Catalogue
from storage.clearing import clear_all
from storage.jobs import JobState
from storage.records import VolumeState
from storage.tables import jobs, volumes
from storage.tidy import remove, tidy
from storage.upload_sessions import UploadSessions

DAY_S = 86_400.0
PAGE = 500
_ID = re.compile(r"((?:vol|job|upl)_[0-9a-f-]{1,40})(?:\.part|\.jsonl?|\.log)?")
_UNPUBLISHED = "an attempt that was not published"


@dataclass(frozen=True)
class Orphan:
    """A file or folder below the data root: its bytes, seconds since it was touched, and why it is one."""

    path: str
    size: int
    age_s: float
    reason: str


def find(data_root: Path, catalogue: Catalogue, *, older_than_s: float = DAY_S) -> list[Orphan]:
    """All orphans that were left alone for so long, by path. Raises CatalogueUnavailable."""
    return sorted(_Search(data_root, catalogue, older_than_s).orphans(), key=lambda orphan: orphan.path)


def collect(data_root: Path, catalogue: Catalogue, *, older_than_s: float = DAY_S) -> list[Orphan]:
    """Remove all orphans, and what the service would remove by itself; which orphans there were."""
    found = find(data_root, catalogue, older_than_s=older_than_s)
    for orphan in found:
        remove(data_root / orphan.path)
    tidy(data_root, catalogue)
    clear_all(data_root, catalogue)
    return found


class _Search:
    """One look at everything: the listing first, then the catalogue."""

    def __init__(self, data_root: Path, catalogue: Catalogue, older_than_s: float) -> None:
        self._root, self._older_than_s, self._moment = data_root, older_than_s, time.time()
        self._unfinished = [
            path for place in ("artifacts", "checkpoints") for path in (data_root / place).rglob("*.part")
        ]
        self._listed = {
            place: _ours(data_root / place)
            for place in ("volumes", "artifacts", "checkpoints", "logs", "uploads", ARRIVING)
        }
        self._sessions = UploadSessions(catalogue.database).open_ids()
        self._jobs = _job_rows(catalogue, self._job_ids())
        self._volumes = _volume_rows(catalogue, self._ids("volumes", "uploads"))
        self._jobs |= _job_rows(
            catalogue, {row.ingest_job for row in self._volumes.values()} - self._jobs.keys()
        )

    def orphans(self) -> Iterator[Orphan]:
        """Those that are old enough."""
        told: set[Path] = set()
        for path, reason in self._strays():
            if told.isdisjoint(path.parents):
                told.add(path)
                orphan = self._measured(path, reason)
                if orphan is not None and orphan.age_s >= self._older_than_s:
                    yield orphan

    def _strays(self) -> Iterator[tuple[Path, str]]:
        """What belongs to nobody, however new."""
        for folder, volume_id in self._listed["volumes"]:
            yield from self._of_volume(folder, volume_id)
        for folder, job_id in self._listed["artifacts"]:
            yield from self._of_artifacts(folder, job_id)
        for place in ("checkpoints", "logs"):
            for path, job_id in self._listed[place]:
                job = self._jobs.get(job_id)
                if job is None:
                    yield path, f"there is no job {job_id}"
                elif place == "checkpoints" and JobState(job.state).terminal:
                    yield path, "the job has ended"
        for path, volume_id in self._listed["uploads"]:
            yield from self._of_upload(path, volume_id)
        for path, upload_id in self._listed[ARRIVING]:
            if upload_id not in self._sessions:
                yield path, f"the upload {upload_id} is not awaited"
        for path in self._unfinished:
            _, job_id, *_ = path.relative_to(self._root).parts
            if not self._is_open(job_id):
                yield path, "a file that was never finished"

    def _of_volume(self, folder: Path, volume_id: str) -> Iterator[tuple[Path, str]]:
        row = self._volumes.get(volume_id)
        if row is None:
            if not self._is_open(_maker(volume_id)):
                yield folder, f"there is no volume {volume_id}"
        elif row.state != VolumeState.DELETED and not self._is_open(row.ingest_job):
            for path in _entries(folder):
                if path.relative_to(self._root).as_posix() != row.store:
                    yield path, _UNPUBLISHED

    def _of_artifacts(self, folder: Path, job_id: str) -> Iterator[tuple[Path, str]]:
        job = self._jobs.get(job_id)
        if job is None:
            yield folder, f"there is no job {job_id}"
        elif JobState(job.state).terminal:
            published = str(job.attempt) if job.state == JobState.SUCCEEDED else None
            for path in _entries(folder):
                if path.name != published:
                    yield path, _UNPUBLISHED

    def _of_upload(self, path: Path, volume_id: str) -> Iterator[tuple[Path, str]]:
        row = self._volumes.get(volume_id)
        if row is None:
            if f"upl_{volume_id.removeprefix('vol_')}" not in self._sessions:
                yield path, f"there is no volume {volume_id}"
        elif not self._is_open(row.ingest_job):
            yield path, "it has been read"

    def _is_open(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and not JobState(job.state).terminal

    def _job_ids(self) -> set[str]:
        return self._ids("artifacts", "checkpoints", "logs") | set(map(_maker, self._ids("volumes")))

    def _ids(self, *places: str) -> set[str]:
        return {name for place in places for _, name in self._listed[place]}

    def _measured(self, path: Path, reason: str) -> Orphan | None:
        """With its size and age; None where it is gone."""
        inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        size, touched = 0, []
        for each in inside:
            try:
                facts = each.lstat()
            except FileNotFoundError:
                continue
            size += 0 if each.is_dir() else facts.st_size
            touched.append(facts.st_mtime)
        if not touched:
            return None
        return Orphan(path.relative_to(self._root).as_posix(), size, self._moment - max(touched), reason)


def _maker(volume_id: str) -> str:
    """The job that would have derived a volume of this id (`storage.ids.derived_id`)."""
    return f"job_{volume_id.removeprefix('vol_')}"


def _ours(folder: Path) -> list[tuple[Path, str]]:
    """What lies in a folder under an id that this service gave, with the id."""
    found = ((path, _ID.fullmatch(path.name)) for path in _entries(folder))
    return [(path, match[1]) for path, match in found if match]


def _entries(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _job_rows(catalogue: Catalogue, ids: Iterable[str]) -> dict[str, Row[Any]]:
    return _rows(catalogue, select(jobs.c.id, jobs.c.state, jobs.c.attempt), jobs.c.id, ids)


def _volume_rows(catalogue: Catalogue, ids: Iterable[str]) -> dict[str, Row[Any]]:
    chosen = select(volumes.c.id, volumes.c.state, volumes.c.store, volumes.c.ingest_job)
    return _rows(catalogue, chosen, volumes.c.id, ids)


def _rows(
    catalogue: Catalogue, chosen: Select[Any], column: Column[str], ids: Iterable[str]
) -> dict[str, Row[Any]]:
    """The rows with these ids, by id."""
    wanted = sorted(ids)
    found: dict[str, Row[Any]] = {}
    with catalogue.database.reading() as connection:
        for start in range(0, len(wanted), PAGE):
            page = chosen.where(column.in_(wanted[start : start + PAGE]))
            found |= {row.id: row for row in connection.execute(page)}
    return found
