"""A derived volume on its way: shards that are whole stay so from one attempt of a job to the next.

    <folder>/<purpose>.<attempt>/volume.zarr      what is written
                                 ledger.jsonl     a line for each shard that is whole

A draft belongs to the attempt in its name. The next attempt takes it over by renaming it: from then on the
one before, which may have lost its lease without knowing, finds no folder to write to. It is found again only
for the same purpose, a digest of all that it depends on. A shard is written under another name, made durable,
and renamed; then the ledger has its line. What the ledger does not have, or has with another checksum, is
made again.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from storage.disk import DISK_FULL, make_folder, sync
from storage.errors import LeaseLost, StorageFull
from storage.ingest import Moments

STORE, LEDGER, PART = "volume.zarr", "ledger.jsonl", ".part"


@dataclass(frozen=True)
class Shard:
    """A shard that is whole: its bytes, the moments of what it decodes to, and how far that is from what it
    was made of, as the sum of squared errors and the largest one.
    """

    key: str
    size: int
    crc: int
    tiles: int
    moments: Moments
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def from_line(cls, line: str) -> Shard:
        """Raises ValueError, KeyError or TypeError for what is no such line."""
        record: dict[str, Any] = json.loads(line)
        return cls(**{**record, "moments": Moments(**record["moments"])})

    def line(self) -> str:
        """As the ledger has it."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Drafts:
    """Where the drafts of one job lie, for one attempt."""

    folder: Path
    job_id: str
    attempt: int

    def open(self, purpose: str) -> Draft:
        """The draft for a purpose (a hexadecimal digest): taken over from an earlier attempt, or new.

        Raises LeaseLost where a later attempt has it.
        """
        make_folder(self.folder)
        own = self.folder / f"{purpose[:32]}.{self.attempt}"
        found = sorted(self.folder.glob(f"{purpose[:32]}.*"), key=_attempt)
        if found and _attempt(found[-1]) > self.attempt:
            raise LeaseLost(self.job_id, self.attempt)
        if found and found[-1] != own:
            self._take(found.pop(), own)
        for older in found:
            if older != own:
                shutil.rmtree(older, ignore_errors=True)
        own.mkdir(exist_ok=True)
        sync(self.folder)
        return Draft(own, self)

    def _take(self, path: Path, own: Path) -> None:
        try:
            path.rename(own)
        except FileNotFoundError:
            raise LeaseLost(self.job_id, self.attempt) from None
        for part in own.rglob(f"*{PART}"):
            part.unlink(missing_ok=True)


@dataclass
class Draft:
    """One draft. `shards` are those that are whole, by key."""

    folder: Path
    drafts: Drafts
    shards: dict[str, Shard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shards = {shard.key: shard for shard in self._read() if self._is_whole(shard)}
        self._write_ledger()

    @property
    def store(self) -> Path:
        """Where the volume is written."""
        return self.folder / STORE

    def add(self, key: str, content: bytes, **facts: Any) -> Shard:
        """A shard, durable when it returns. Raises StorageFull; LeaseLost where the draft was taken over."""
        shard = Shard(key, len(content), int(google_crc32c.value(content)), **facts)
        self.write(key, content)
        try:
            self._append(shard.line())
        except OSError as error:
            raise self._translated(error) from error
        self.shards[key] = shard
        return shard

    def write(self, key: str, content: bytes) -> None:
        """A file of the volume that has no line in the ledger, durable when it returns. Raises as `add`."""
        path = self.store / key
        part = path.with_name(f"{path.name}.{self.drafts.attempt}{PART}")
        try:
            self._make_folders(path.parent)
            _write(part, content)
            part.rename(path)
            sync(path.parent)
        except OSError as error:
            raise self._translated(error) from error

    def publish(self, destination: Path) -> None:
        """Move what was written to its place; the draft is gone. Raises LeaseLost where it was taken over."""
        try:
            make_folder(destination.parent)
            self.store.rename(destination)
            sync(destination.parent)
        except OSError as error:
            raise self._translated(error) from error
        self.drop()

    def drop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> list[Shard]:
        """The lines that are whole: what stands behind the first that is not was never made durable."""
        shards = []
        if (path := self.folder / LEDGER).is_file():
            for line in path.read_text().splitlines():
                try:
                    shards.append(Shard.from_line(line))
                except (ValueError, KeyError, TypeError):
                    break
        return shards

    def _is_whole(self, shard: Shard) -> bool:
        try:
            return int(google_crc32c.value((self.store / shard.key).read_bytes())) == shard.crc
        except OSError:
            return False

    def _write_ledger(self) -> None:
        try:
            part = self.folder / f"{LEDGER}{PART}"
            _write(part, "".join(shard.line() for shard in self.shards.values()).encode())
            part.rename(self.folder / LEDGER)
            sync(self.folder)
        except OSError as error:
            raise self._translated(error) from error

    def _append(self, line: str) -> None:
        handle = os.open(self.folder / LEDGER, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _make_folders(self, folder: Path) -> None:
        """Below the store, never the store itself: it may have been taken over."""
        if folder != self.store and not folder.is_dir():
            self._make_folders(folder.parent)
            folder.mkdir(exist_ok=True)
            sync(folder.parent)

    def _translated(self, error: OSError) -> Exception:
        if error.errno in DISK_FULL:
            return StorageFull(f"the volume could not be written: {error.strerror}")
        if isinstance(error, FileNotFoundError) and not self.folder.is_dir():
            return LeaseLost(self.drafts.job_id, self.drafts.attempt)
        return error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _attempt(path: Path) -> int:
    return int(path.suffix[1:])
