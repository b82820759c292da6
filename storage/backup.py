"""A copy of everything that persists, taken while the service runs, and its proof.

    <target>/backup.json     what is there: size and sha-256 of every file, and what was left out, with why
             catalogue.db    the catalogue at one moment
             volumes/...     the stores of its ready volumes
             artifacts/...   what its jobs have published
             uploads/...     scans that wait to be read
             arriving/...    objects and instances that have arrived of those that have not come whole
             logs/...        of jobs that have ended
             secrets/...     what identifiers are replaced by: without it, by others from then on

The catalogue is copied first; then the files that it names, which never change once it names them: by hard
links on the same disk, else by copying. Every byte is compared with the digest that the catalogue, or the
volume's manifest, knows. What is removed meanwhile makes it begin again with a later moment. The target has
its name when it is whole, and only its owner can read it. API keys are in it as hashes; `run/key` is not.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, select

from storage.arriving import FOLDER as ARRIVING
from storage.backup_manifest import CATALOGUE, SECRETS, Backup, BackupError, KeptFile, LeftOut, hashed
from storage.disk import make_folder, sync
from storage.errors import CorruptVolume
from storage.jobs import TERMINAL, Job, JobState
from storage.manifest import NAME as MANIFEST
from storage.manifest import Manifest
from storage.records import VolumeRecord, VolumeState
from storage.snapshot import reading, snapshot
from storage.tables import job_of, jobs, upload_objects, uploads, volume_of, volumes
from storage.upload_sessions import UploadKind, UploadState

ROUNDS = 5
_JOB = re.compile(r"job_[0-9a-f-]+")


def back_up(url: str, data_root: Path, target: Path) -> Backup:
    """Copy the catalogue at a SQLAlchemy URL, and what it names below the data root, into a new folder.

    Raises BackupError where the target is taken, CatalogueUnavailable, StorageFull, or OSError.
    """
    unfinished = target.with_name(f"{target.name}.part")
    for taken in (target, unfinished):
        if taken.exists():
            raise BackupError(f"{taken} is there already; remove it, or name a new folder")
    make_folder(unfinished)
    unfinished.chmod(0o700)
    try:
        backup = _copy(url, data_root, unfinished)
        backup.write(unfinished)
        unfinished.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return backup


def verify(source: Path) -> list[str]:
    """What is wrong with a backup, every byte read again: a line for each file. Raises BackupError."""
    return list(_wrong(source, Backup.read(source)))


def _wrong(source: Path, backup: Backup) -> Iterator[str]:
    for path, kept in backup.files.items():
        try:
            found = hashed(source / path)
        except OSError as error:
            yield f"{path}: {error.strerror}"
            continue
        if found != kept:
            yield f"{path}: {found.size} bytes with sha-256 {found.sha256} are not what was kept"


def _copy(url: str, data_root: Path, target: Path) -> Backup:
    """As `back_up`, into a folder that is there; begins again while what the catalogue names goes away."""
    files: dict[str, KeptFile] = {}
    missed: set[LeftOut] = set()
    for _ in range(ROUNDS):
        (target / CATALOGUE).unlink(missing_ok=True)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        snapshot(url, target / CATALOGUE)
        copying = _Copying(data_root, target, files)
        with reading(target / CATALOGUE) as rows:
            copying.everything(rows)
        before, missed = missed, copying.left_out
        if missed <= before:
            break
    for path in files.keys() - copying.named:
        (target / path).unlink(missing_ok=True)
    kept = {path: files[path] for path in sorted(copying.named)}
    kept[CATALOGUE] = hashed(target / CATALOGUE)
    return Backup(moment, kept, tuple(sorted(missed, key=lambda each: each.path)))


class _Copying:
    """One round: what the snapshot names, linked or copied, and compared. `files` outlasts the round."""

    def __init__(self, data_root: Path, target: Path, files: dict[str, KeptFile]) -> None:
        self._data_root, self._target, self._files = data_root, target, files
        self.named: set[str] = set()
        self.left_out: set[LeftOut] = set()

    def everything(self, rows: Connection) -> None:
        """Copy what waits to be read first: it is what goes away soonest."""
        self._secrets()
        self._arriving(rows)
        known = [volume_of(row) for row in rows.execute(select(volumes).order_by(volumes.c.id))]
        for volume in known:
            if volume.state is VolumeState.VALIDATING:
                self._upload(volume)
        for volume in known:
            if volume.state is VolumeState.READY:
                self._store(volume)
        for row in rows.execute(select(jobs).where(jobs.c.state == JobState.SUCCEEDED).order_by(jobs.c.id)):
            self._artifacts(job_of(row))
        self._logs(set(rows.execute(select(jobs.c.id).where(jobs.c.state.in_(TERMINAL))).scalars()))

    def _secrets(self) -> None:
        for path in sorted((self._data_root / SECRETS).glob("*")):
            name = path.relative_to(self._data_root).as_posix()
            self._take(name, link=False)
            (self._target / name).chmod(0o600)
            self.named.add(name)

    def _arriving(self, rows: Connection) -> None:
        """Objects have their names when they are whole; a file that grows (tus) is to be sent anew."""
        still = (uploads.c.state == UploadState.OPEN, uploads.c.kind != UploadKind.TUS)
        objects = (
            select(upload_objects).join(uploads, uploads.c.id == upload_objects.c.upload_id).where(*still)
        )
        wanted: dict[str, dict[str, KeptFile | None]] = {}
        for row in rows.execute(objects):
            arrived = wanted.setdefault(row.upload_id, {})
            arrived[f"{ARRIVING}/{row.upload_id}/objects/{row.key}"] = KeptFile(row.size, row.sha256)
        for upload_id, arrived in wanted.items():
            folder = self._data_root / ARRIVING / upload_id
            announced = {f"{ARRIVING}/{upload_id}/{MANIFEST}": None} if (folder / MANIFEST).is_file() else {}
            self._take_all(folder, {**arrived, **announced})

    def _upload(self, volume: VolumeRecord) -> None:
        """One file, or the folder of a Zarr."""
        place = self._data_root / "uploads" / volume.id
        if not place.is_dir():
            known = KeptFile(volume.source_bytes, volume.source_sha256)
            self._take_all(place, {f"uploads/{volume.id}": known})
            return
        found = sorted(path for path in place.rglob("*") if path.is_file())
        self._take_all(place, {path.relative_to(self._data_root).as_posix(): None for path in found})

    def _store(self, volume: VolumeRecord) -> None:
        assert volume.stored is not None
        assert volume.store is not None
        folder = self._data_root / volume.store
        try:
            manifest = Manifest.read(folder)
        except CorruptVolume as error:
            self._leave_out(folder, str(error))
            return
        if manifest.digest != volume.stored.digest:
            self._leave_out(folder, "its manifest is not the one that the catalogue knows")
            return
        known = {key: KeptFile(kept.size, kept.sha256) for key, kept in manifest.objects.items()}
        self._take_all(
            folder, {f"{volume.store}/{key}": kept for key, kept in {**known, MANIFEST: None}.items()}
        )

    def _artifacts(self, job: Job) -> None:
        folder = f"artifacts/{job.id}/{job.attempt}"
        known = {f"{folder}/{each.name}": KeptFile(each.size, each.sha256) for each in job.artifacts}
        self._take_all(self._data_root / folder, known)

    def _logs(self, ended: set[str]) -> None:
        """A line may still be added to a log: it is copied, and nothing depends on it."""
        for path in sorted((self._data_root / "logs").rglob("*")):
            name = path.relative_to(self._data_root).as_posix()
            job = _JOB.match(name.split("/")[1])
            if job and job[0] in ended and path.is_file():
                self._files.pop(name, None)
                with contextlib.suppress(FileNotFoundError):
                    self._take(name, link=False)
                    self.named.add(name)

    def _take_all(self, place: Path, wanted: Mapping[str, KeptFile | None]) -> None:
        """Take all of a thing, or none: a part of a volume is no volume."""
        for path, known in wanted.items():
            try:
                found = self._files.get(path) or self._take(path)
            except OSError as error:
                self._leave_out(place, f"{path}: {error.strerror}")
                return
            if known is not None and found != known:
                self._leave_out(place, f"{path}: it is not what the catalogue knows")
                return
        self.named |= wanted.keys()

    def _take(self, path: str, *, link: bool = True) -> KeptFile:
        source, target = self._data_root / path, self._target / path
        make_folder(target.parent)
        target.unlink(missing_ok=True)
        if not (link and _linked(source, target)):
            shutil.copyfile(source, target)
            sync(target)
        self._files[path] = hashed(target)
        return self._files[path]

    def _leave_out(self, place: Path, reason: str) -> None:
        self.left_out.add(LeftOut(place.relative_to(self._data_root).as_posix(), reason))


def _linked(source: Path, target: Path) -> bool:
    """Whether a second name could be given to the file. Raises FileNotFoundError."""
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        return False
    return True
