"""What jobs write: tensors as safetensors, documents as JSON, one folder per attempt; never a pickle.

A folder is published by the catalogue's row, which names the attempt that finished: what a late or a
failed attempt wrote is never seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage.disk import DISK_FULL, write_whole, written_whole
from storage.errors import CorruptArtifact, MissingArtifact, StorageFull
from storage.jobs import Artifact, Job, JobState
from storage.tensors import Array, packed, unpacked

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"


class ArtifactStore:
    """The folder `root` of all artifacts, as `<job id>/<attempt>/<name>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, job_id: str, attempt: int) -> ArtifactWriter:
        """A writer for one attempt of a job; its folder is made by the first write."""
        return ArtifactWriter(self._root / job_id / str(attempt))

    def path(self, job_id: str, attempt: int, name: str) -> Path:
        """Where an artifact lies. Raises MissingArtifact, also for a name that is no plain name."""
        path = self._root / job_id / str(attempt) / name
        if not NAME.fullmatch(name) or not path.is_file():
            raise MissingArtifact(job_id, name)
        return path

    def read(self, job: Job, name: str) -> bytes:
        """A published artifact, compared with the catalogue's sha-256.

        Raises MissingArtifact, also for a job that has not succeeded, and CorruptArtifact.
        """
        published = job.artifacts if job.state is JobState.SUCCEEDED else ()
        digest = next((artifact.sha256 for artifact in published if artifact.name == name), None)
        if digest is None:
            raise MissingArtifact(job.id, name)
        content = self.path(job.id, job.attempt, name).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise CorruptArtifact(job.id, name, digest, found)
        return content


class ArtifactWriter:
    """Writes the artifacts of one attempt; each is durable and whole when its `write_` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_tensors(self, name: str, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Artifact:
        """Tensors and a JSON manifest in one safetensors file (the manifest in its metadata)."""
        return self.write_bytes(name, packed(tensors, manifest), SAFETENSORS)

    def write_json(self, name: str, document: Any, *, indent: int | None = 1) -> Artifact:
        """A JSON document; without `indent` on one line. Raises ValueError where a number is not finite."""
        text = json.dumps(document, sort_keys=True, allow_nan=False, indent=indent)
        return self.write_bytes(name, text.encode(), JSON)

    def write_bytes(self, name: str, content: bytes, media_type: str) -> Artifact:
        """Any bytes under a plain lower-case name; StorageFull when the disk refuses."""
        try:
            write_whole(self._place(name), content)
        except OSError as error:
            raise StorageFull(f"artifact {name!r} could not be written: {error.strerror}") from error
        return Artifact(name, len(content), hashlib.sha256(content).hexdigest(), media_type)

    def write_pieces(self, name: str, pieces: Iterable[bytes], media_type: str) -> Artifact:
        """Bytes of any length as they come, one piece in memory at a time; StorageFull when the disk is.

        Whatever making a piece raises leaves nothing.
        """
        size, digest = 0, hashlib.sha256()
        try:
            with written_whole(self._place(name)) as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise StorageFull(f"artifact {name!r} could not be written: {error.strerror}") from error
            raise
        return Artifact(name, size, digest.hexdigest(), media_type)

    def _place(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact name")
        return self._folder / name


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors and the manifest of a safetensors artifact, for arrays that fit into memory."""
    return unpacked(path.read_bytes())
