"""The list of a volume's objects with their digests, whose root digest names the volume.

Checksums inside the chunks find damage; only the manifest finds an object that is missing, stale or
exchanged for another sound one. See storage/shards.py for how it does that without reading whole shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from storage.errors import CorruptVolume

NAME = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class StoredObject:
    """One file of a volume: size in bytes, sha-256, and for a shard its seal."""

    size: int
    sha256: str
    seal: int | None = None


@dataclass(frozen=True)
class Manifest:
    """All objects of a volume by key (`zarr.json`, `0/c/0/0/0`, ...), without the manifest itself."""

    objects: dict[str, StoredObject]

    @classmethod
    def of(cls, folder: Path, seals: Mapping[str, int]) -> Manifest:
        """Read and hash everything below a folder; `seals` has those of the shards by key."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
        keys = {path.relative_to(folder).as_posix(): path for path in files}
        return cls({key: StoredObject(*_size_and_sha256(path), seals.get(key)) for key, path in keys.items()})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest that was written beside the volume.

        Raises CorruptVolume when it does not parse, or does not fit its own digest.
        """
        try:
            document = json.loads((folder / NAME).read_text())
            manifest = cls({key: _object(entry) for key, entry in document["objects"].items()})
            version, digest, found = document["version"], document["digest"], manifest.digest
        except OSError as error:
            raise CorruptVolume(NAME, f"the manifest cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptVolume(NAME, f"the manifest cannot be read: {error}") from error
        if (version, digest) != (VERSION, found):
            raise CorruptVolume(NAME, f"version {version} and {digest} are not what the manifest holds")
        return manifest

    def write(self, folder: Path) -> None:
        """Write it beside the volume."""
        objects = {key: asdict(entry) for key, entry in self.objects.items()}
        document = {"version": VERSION, "digest": self.digest, "objects": objects}
        (folder / NAME).write_text(json.dumps(document, indent=1, sort_keys=True))

    @property
    def digest(self) -> str:
        """sha-256 of the lines `<sha-256>  <size>  <seal>  <key>`, sorted by key."""
        lines = (f"{o.sha256}  {o.size}  {o.seal}  {key}\n" for key, o in sorted(self.objects.items()))
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all objects together."""
        return sum(entry.size for entry in self.objects.values())

    @property
    def seals(self) -> dict[str, int]:
        """Each shard's seal, by key."""
        return {key: o.seal for key, o in self.objects.items() if o.seal is not None}

    def verify(self, folder: Path) -> None:
        """Read every object again. Raises CorruptVolume at the first that is missing or altered."""
        for key, entry in self.objects.items():
            path = folder / key
            if not path.is_file():
                raise CorruptVolume(key, "the object is missing")
            if _size_and_sha256(path) != (entry.size, entry.sha256):
                raise CorruptVolume(key, "the object is not the one that the manifest names")


def _object(entry: dict[str, Any]) -> StoredObject:
    """An entry of the document. Raises TypeError where it is none."""
    found = StoredObject(**entry)
    if (
        type(found.size) is not int
        or type(found.sha256) is not str
        or type(found.seal) not in (int, NoneType)
    ):
        raise TypeError(f"{entry} is no entry of size, sha256 and seal")
    return found


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
