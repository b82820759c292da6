"""What jobs write: tensors as safetensors, documents as JSON, one folder per attempt; never a pickle.

A folder is published by the catalogue's row, which names the attempt that finished: what a late or a
failed attempt wrote is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from storage.disk import sync
from storage.errors import MissingArtifact, StorageFull
from storage.jobs import Artifact

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


class ArtifactWriter:
    """Writes the artifacts of one attempt; each is durable and whole when its `write_` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_tensors(
        self, name: str, tensors: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]
    ) -> Artifact:
        """Tensors and a JSON manifest in one safetensors file (the manifest in its metadata)."""
        arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        metadata = {"manifest": json.dumps(manifest, sort_keys=True, allow_nan=False)}
        return self.write_bytes(name, save(arrays, metadata), SAFETENSORS)

    def write_json(self, name: str, document: Any) -> Artifact:
        """A JSON document. Raises ValueError where a number is not finite."""
        text = json.dumps(document, sort_keys=True, allow_nan=False, indent=1)
        return self.write_bytes(name, text.encode(), JSON)

    def write_bytes(self, name: str, content: bytes, media_type: str) -> Artifact:
        """Any bytes under a plain lower-case name; StorageFull when the disk refuses."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact name")
        part = self._folder / f"{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self._folder / name)
            for folder in (self._folder, *self._folder.parents[:2]):
                sync(folder)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageFull(f"artifact {name!r} could not be written: {error.strerror}") from error
        return Artifact(name, len(content), hashlib.sha256(content).hexdigest(), media_type)


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors and the manifest of a safetensors artifact, for arrays that fit into memory."""
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    return load(content), json.loads(header["__metadata__"]["manifest"])
