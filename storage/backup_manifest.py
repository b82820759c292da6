"""What a backup says of itself: every file with its size and sha-256, and what was left out, with why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from storage.disk import write_whole
from storage.migrations import HEAD

NAME = "backup.json"
CATALOGUE = "catalogue.db"
SECRETS = "secrets"
FORMAT = 1


class BackupError(Exception):
    """A backup that cannot be made, or cannot be used. `str(error)` names the cause and the cure."""


@dataclass(frozen=True)
class KeptFile:
    """Size in bytes and sha-256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """What the catalogue names and the backup does not have: a path, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Backup:
    """What `backup.json` says. `files` are by path below the target; times are in ISO 8601, UTC."""

    created_at: str
    files: Mapping[str, KeptFile]
    left_out: tuple[LeftOut, ...] = ()
    release: str = field(default_factory=lambda: version("tomotrain"))
    schema: str = HEAD
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kept.size for kept in self.files.values())

    @property
    def digest(self) -> str:
        """sha-256 of the lines `<sha-256>  <size>  <path>`, sorted by path."""
        lines = (f"{kept.sha256}  {kept.size}  {path}\n" for path, kept in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, target: Path) -> None:
        """Put it beside the files."""
        document = {**asdict(self), "digest": self.digest}
        write_whole(target / NAME, json.dumps(document, indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, source: Path) -> Backup:
        """What a folder says of itself. Raises BackupError where it is no backup that this release reads."""
        try:
            document: dict[str, Any] = json.loads((source / NAME).read_bytes())
            digest = document.pop("digest")
            files = {_plain(path): KeptFile(**kept) for path, kept in document.pop("files").items()}
            left_out = tuple(LeftOut(**each) for each in document.pop("left_out"))
            backup = cls(files=files, left_out=left_out, **document)
        except FileNotFoundError:
            raise BackupError(f"{source} has no {NAME}: it is no backup, or one that did not end") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(
                f"{source / NAME} cannot be read ({type(error).__name__}); take another backup"
            ) from error
        if backup.format != FORMAT:
            raise BackupError(f"{source} is of format {backup.format}; this release reads {FORMAT}")
        if backup.digest != digest:
            raise BackupError(
                f"{source / NAME} was changed: its files have the digest {backup.digest}, not {digest}"
            )
        return backup


def hashed(path: Path) -> KeptFile:
    """A file's size and sha-256. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return KeptFile(file.tell(), digest)


def _plain(path: str) -> str:
    """The path, if it stays below its folder. Raises ValueError."""
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts or not parts or "\0" in path:
        raise ValueError(path)
    return path
