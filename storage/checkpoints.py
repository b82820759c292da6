"""How far a long job has come: kept beside its attempts, so that the next one goes on from there.

    <data root>/checkpoints/<job id>/<part>/<part>/state.safetensors

A checkpoint replaces the one before it in one step, and carries a sha-256 of all that it holds: one that a
disk has damaged is not there. Nor is one that was written for something else: by another version of the
program, say. Two attempts of a job may write at once, when one has lost its lease without
knowing; each finds the other's checkpoint or its own, both of which are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.disk import write_whole
from storage.errors import StorageFull
from storage.tensors import Array, packed, unpacked

log = logging.getLogger("tomotrain.storage")

NAME = "state.safetensors"
_PART = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def checkpoint_folder(data_root: Path, job_id: str) -> Path:
    """Where all checkpoints of a job lie."""
    return data_root / "checkpoints" / job_id


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint in a folder, written by one attempt; fits `models.training.Checkpoints`.

    `purpose` is all that what is saved depends on, as a digest: what has another one is not found.
    """

    folder: Path
    attempt: int
    purpose: str = ""

    def save(self, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        """Replace what was saved before; durable when it returns. Raises StorageFull."""
        seal = _digest(tensors, manifest)
        content = packed(tensors, {"sha256": seal, "purpose": self.purpose, "manifest": manifest})
        try:
            write_whole(self.folder / NAME, content, part=f"{self.attempt}.part")
        except OSError as error:
            raise StorageFull(f"a checkpoint could not be written: {error.strerror}") from error

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """What was saved last; None where there is nothing, nothing sound, or nothing for this purpose."""
        try:
            tensors, sealed = unpacked((self.folder / NAME).read_bytes())
            manifest: dict[str, Any] = sealed["manifest"]
            if sealed["sha256"] != _digest(tensors, manifest):
                raise ValueError("its content does not match its sha-256")
            purpose = sealed["purpose"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the checkpoint in %s is damaged and is not used: %s", self.folder, error)
            return None
        if purpose != self.purpose:
            log.warning("the checkpoint in %s is of another version or task and is not used", self.folder)
            return None
        return tensors, manifest

    def part(self, name: str) -> Checkpoints:
        """Another place, for one part of the work. Raises ValueError for what is no plain name."""
        if not _PART.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a part")
        return replace(self, folder=self.folder / name)

    def meant_for(self, purpose: str) -> Checkpoints:
        """The same places, for one purpose."""
        return replace(self, purpose=purpose)


def _digest(tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> str:
    """Of names, types, shapes and bytes, and of the manifest."""
    found = hashlib.sha256(json.dumps(manifest, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        found.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(array.tobytes())
    return found.hexdigest()
