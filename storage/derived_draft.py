"""A derived volume on its way: shards that are whole stay so from one attempt of a job to the next.

    <folder>/<purpose>.<attempt>/volume.zarr      what is written
                                 ledger.jsonl     a line for each shard that is whole
                                 shard.part       the one that is not, yet

A draft belongs to the attempt in its name. The next attempt takes it over by renaming it: from then on the
one before, which may have lost its lease without knowing, finds no folder to write to. It is found again only
for the same purpose, a digest of all that it depends on. A shard is written beside the volume, made durable,
and moved into it; then the ledger has its line. What the ledger does not have, or has with another checksum,
is made again. Others may help to write (`storage.derived_help`), each with a ledger of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from storage.derived_help import LEDGER, Desk, Help, ledgers, order_of
from storage.disk import DISK_FULL, make_folder, sync
from storage.errors import LeaseLost, StorageFull
from storage.ingest import Moments

STORE, PART = "volume.zarr", "shard.part"
POLL_S = 0.05


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
        return Draft.own(own, self)

    def joined(self, accepted: Callable[[dict[str, Any]], bool]) -> Iterator[tuple[Draft, dict[str, Any]]]:
        """The drafts of this attempt whose owner asks for help, and what is to be done, where that is
        accepted; each with a desk of this process's own while it is looked at.
        """
        for folder in sorted(self.folder.glob(f"*.{self.attempt}")):
            order = order_of(folder)
            if order is None or not accepted(order) or (desk := Desk.taken(folder)) is None:
                continue
            try:
                yield Draft(folder, self, _known(folder), desk=desk), order
            finally:
                desk.leave()

    def _take(self, path: Path, own: Path) -> None:
        try:
            path.rename(own)
        except FileNotFoundError:
            raise LeaseLost(self.job_id, self.attempt) from None


@dataclass
class Draft:
    """One draft. `shards` are those that are whole, by key; `helped` counts tiles that others have coded for
    the owner since it asked them to.
    """

    folder: Path
    drafts: Drafts
    shards: dict[str, Shard] = field(default_factory=dict)
    helped: int = 0
    help: Help | None = None
    desk: Desk | None = None
    """Of a helper; the owner has none."""
    _looked_at: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def own(cls, folder: Path, drafts: Drafts) -> Draft:
        """Of its owner, who finds what is whole; helpers of before are gone."""
        draft = cls(folder, drafts)
        draft.shards = {key: shard for key, shard in _known(folder).items() if draft._is_whole(shard)}
        draft._write_ledger()
        with draft._translated():
            Help(folder).end()
        return draft

    @property
    def store(self) -> Path:
        """Where the volume is written."""
        return self.folder / STORE

    def add(self, key: str, content: bytes, **facts: Any) -> Shard:
        """A shard, durable when it returns. Raises StorageFull; LeaseLost where the draft was taken over."""
        shard = Shard(key, len(content), int(google_crc32c.value(content)), **facts)
        self.write(key, content)
        with self._translated():
            _append(self._place / LEDGER, shard.line())
        self.shards[key] = shard
        return shard

    def write(self, key: str, content: bytes) -> None:
        """A file of the volume that has no line in the ledger, durable when it returns. Raises as `add`."""
        path = self.store / key
        with self._translated():
            self._make_folders(path.parent)
            _write(self._place / PART, content)
            (self._place / PART).rename(path)
            sync(path.parent)

    def publish(self, destination: Path) -> None:
        """Move what was written to its place; the draft is gone. Raises LeaseLost where it was taken over."""
        with self._translated():
            make_folder(destination.parent)
            self.store.rename(destination)
            sync(destination.parent)
        self.drop()

    def drop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # Several workers at one draft

    def ask(self, order: Mapping[str, Any]) -> bool:
        """Let others help from now on, until `end_help`; whether they can. Raises as `add`."""
        with self._translated():
            help_wanted = Help(self.folder)
            self.help = help_wanted if help_wanted.ask(order) else None
        return self.help is not None

    def claim(self, key: str) -> bool:
        """Whether a shard is to be coded here, and by nobody else. Raises LeaseLost."""
        if (sharing := self.desk or self.help) is None:
            return True
        with self._translated():
            return sharing.claim(key)

    def sign(self) -> None:
        """Show the owner that its helper is there. Raises LeaseLost for one that was sent away."""
        if self.desk is not None:
            with self._translated():
                self.desk.sign()

    def given_up(self, keys: Iterable[str], waiting: Callable[[], None]) -> Iterator[str]:
        """Of shards that others claimed, those that must be coded here after all; it ends when the others
        are whole. `waiting` is called again and again and may raise.
        """
        left = list(keys)
        while left:
            self.look()
            left = [key for key in left if key not in self.shards]
            with self._translated():
                lost = next((key for key in left if self.help is None or self.help.is_given_up(key)), None)
            if lost is not None:
                self.look()  # its last line may stand there since
                left.remove(lost)
                if lost not in self.shards:
                    yield lost
            elif left:
                waiting()
                time.sleep(POLL_S)

    def look(self) -> None:
        """Take note of what helpers have done."""
        if self.help is None:
            return
        for ledger in self.help.ledgers():
            for shard in self._news(ledger):
                if shard.key not in self.shards:
                    self.shards[shard.key] = shard
                    self.helped += shard.tiles

    def _news(self, ledger: Path) -> Iterator[Shard]:
        """Whole lines since the last look."""
        begin = self._looked_at.get(ledger, 0)
        try:
            with ledger.open("rb") as file:
                file.seek(begin)
                news = file.read()
        except FileNotFoundError:  # the desk was left in this moment: it has another name now
            return
        whole = news[: news.rfind(b"\n") + 1]
        self._looked_at[ledger] = begin + len(whole)
        yield from _shards(whole.decode().splitlines())

    def end_help(self) -> None:
        """From now on nobody but the owner writes. Raises as `add`."""
        if self.help is not None:
            self._write_ledger()
            with self._translated():
                self.help.end()
                self.help = None

    @property
    def _place(self) -> Path:
        """Where this process writes what is not whole yet: without it, nothing gets into the volume."""
        return self.folder if self.desk is None else self.desk.folder

    def _is_whole(self, shard: Shard) -> bool:
        try:
            return int(google_crc32c.value((self.store / shard.key).read_bytes())) == shard.crc
        except OSError:
            return False

    def _write_ledger(self) -> None:
        with self._translated():
            part = self.folder / f"{LEDGER}.part"
            _write(part, "".join(shard.line() for shard in self.shards.values()).encode())
            part.rename(self.folder / LEDGER)
            sync(self.folder)

    def _make_folders(self, folder: Path) -> None:
        """Below the store, never the store itself: it may have been taken over."""
        if folder != self.store and not folder.is_dir():
            self._make_folders(folder.parent)
            folder.mkdir(exist_ok=True)
            sync(folder.parent)

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Whatever fails because the draft was taken over meanwhile fails as LeaseLost."""
        try:
            yield
        except Exception as error:
            if (self._place / LEDGER).is_file():  # the folder itself may have been made anew
                raise
            raise LeaseLost(self.drafts.job_id, self.drafts.attempt) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A full disk as StorageFull, a place that is gone as LeaseLost."""
        try:
            yield
        except OSError as error:
            if error.errno in DISK_FULL:
                raise StorageFull(f"the volume could not be written: {error.strerror}") from error
            if isinstance(error, FileNotFoundError) and not self._place.is_dir():
                raise LeaseLost(self.drafts.job_id, self.drafts.attempt) from error
            raise


def _known(draft: Path) -> dict[str, Shard]:
    """What all ledgers tell, the owner's first."""
    known: dict[str, Shard] = {}
    for shard in _read(ledgers(draft)):
        known.setdefault(shard.key, shard)
    return known


def _read(paths: Iterable[Path]) -> Iterator[Shard]:
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            continue
        yield from _shards(lines)


def _shards(lines: Iterable[str]) -> Iterator[Shard]:
    """Of lines that are whole: what stands behind the first that is not was never made durable."""
    for line in lines:
        try:
            yield Shard.from_line(line)
        except (ValueError, KeyError, TypeError):
            return


def _append(path: Path, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _attempt(path: Path) -> int:
    return int(path.suffix[1:])
