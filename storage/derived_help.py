"""How several workers code the shards of one draft.

    <draft>/order.json              what is to be done, in words of whoever ordered it
            claims/<shard>          a link whose target names the desk where the shard is being coded
            desks/<name>/           one helper's: its ledger, and the shard that it is writing
            desks/<name>.sent_away

A claim is made by whoever comes first and is never given back. The owner of the draft codes as everybody
does, and waits at the end for shards that others have claimed. A helper touches its desk between tiles; one
that is silent, or takes very long, is sent away by renaming its desk, from which, in the same moment, it can
move no shard into the volume any more. So nobody writes a shard that another has finished, whatever is
killed, paused or slow.

Helpers are never needed: without them, and after any of them, the owner does all by itself; where the file
system knows no symbolic links, nobody is asked.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.disk import DISK_FULL

ORDER, CLAIMS, DESKS, LEDGER = "order.json", "claims", "desks", "ledger.jsonl"
OWNER = "owner"
SENT_AWAY = ".sent_away"
PATIENCE_S = 30.0
"""A desk that nobody has touched for so long is given up."""
LONGEST_S = 120.0
"""So is one whose shard the owner has waited for so long, with nothing else to do."""


@dataclass
class Help:
    """The owner's side of one draft's helpers."""

    draft: Path
    _signs: dict[str, tuple[int, float]] = field(default_factory=dict)
    _awaited: dict[str, float] = field(default_factory=dict)

    def ask(self, order: Mapping[str, Any]) -> bool:
        """Whether helpers may come from now on; not where claims cannot be made. Raises OSError."""
        for name in (CLAIMS, DESKS):
            (self.draft / name).mkdir(exist_ok=True)
        try:
            self.claim(ORDER)
        except OSError as error:
            if error.errno in DISK_FULL or isinstance(error, FileNotFoundError):
                raise
            return False
        part = self.draft / DESKS / ORDER
        part.write_text(json.dumps(order))
        part.rename(self.draft / ORDER)
        return True

    def claim(self, key: str) -> bool:
        """Whether a shard is the owner's to code. Raises OSError."""
        return _claimed(self.draft, key, OWNER)

    def is_given_up(self, key: str) -> bool:
        """Whether nobody works on a shard that another claimed: it is the owner's now."""
        name = str(_claim(self.draft, key).readlink())
        waited = time.monotonic() - self._awaited.setdefault(key, time.monotonic())
        if waited > LONGEST_S or self._is_silent(name):
            self._send_away(name)
        return name == OWNER or not (self.draft / DESKS / name).is_dir()

    def ledgers(self) -> Iterator[Path]:
        """Of all desks, also those that were given up."""
        yield from sorted((self.draft / DESKS).glob(f"*/{LEDGER}"))

    def end(self) -> None:
        """Nobody helps any more; what their ledgers say is to be in the owner's before. Raises OSError."""
        (self.draft / ORDER).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.draft / DESKS).rename(self.draft / f"{DESKS}.{secrets.token_hex(8)}{SENT_AWAY}")
        for gone in self.draft.glob(f"{DESKS}.*{SENT_AWAY}"):
            shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(self.draft / CLAIMS, ignore_errors=True)

    def _is_silent(self, name: str) -> bool:
        """By this process's own clock: those of other machines may differ."""
        with contextlib.suppress(FileNotFoundError):
            sign = (self.draft / DESKS / name).stat().st_mtime_ns
            if name not in self._signs or self._signs[name][0] != sign:
                self._signs[name] = sign, time.monotonic()
            return time.monotonic() - self._signs[name][1] > PATIENCE_S
        return False

    def _send_away(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has left by itself
            (self.draft / DESKS / name).rename(self.draft / DESKS / f"{name}{SENT_AWAY}")


@dataclass(frozen=True)
class Desk:
    """A helper's place in another worker's draft."""

    draft: Path
    name: str

    @classmethod
    def taken(cls, draft: Path) -> Desk | None:
        """A new one; None where no help is asked for."""
        name = secrets.token_hex(8)
        try:
            (draft / DESKS / name).mkdir()
            (draft / DESKS / name / LEDGER).touch()
        except FileNotFoundError:
            return None
        return cls(draft, name)

    @property
    def folder(self) -> Path:
        """Gone when the helper was sent away."""
        return self.draft / DESKS / self.name

    def claim(self, key: str) -> bool:
        """Whether a shard is this helper's to code. Raises FileNotFoundError where no help is wanted."""
        return _claimed(self.draft, key, self.name)

    def sign(self) -> None:
        """Show that somebody is here. Raises FileNotFoundError for a helper that was sent away."""
        os.utime(self.folder)

    def leave(self) -> None:
        """Give up what was claimed and is not done; of a helper that has done nothing, nothing stays."""
        gone = self.folder.with_name(f"{self.name}{SENT_AWAY}")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(gone)
            if not (gone / LEDGER).stat().st_size:
                shutil.rmtree(gone, ignore_errors=True)


def order_of(draft: Path) -> dict[str, Any] | None:
    """What helpers are asked to do; None where they are not."""
    try:
        order: dict[str, Any] = json.loads((draft / ORDER).read_bytes())
    except FileNotFoundError:
        return None
    return order


def ledgers(draft: Path) -> Iterator[Path]:
    """All ledgers of a draft, the owner's first."""
    yield from itertools.chain([draft / LEDGER], Help(draft).ledgers())


def _claim(draft: Path, key: str) -> Path:
    return draft / CLAIMS / key.replace("/", ".")


def _claimed(draft: Path, key: str, name: str) -> bool:
    """A symbolic link is made whole or not at all."""
    try:
        _claim(draft, key).symlink_to(name)
    except FileExistsError:
        return False
    return True
