"""Files from the service: compared with their digests on the way, and under their names only when whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from service.client import Client
from service.schemas import ArtifactView, VolumeView
from service.watcher import Watcher
from storage.errors import CorruptVolume, UnsafeArchive
from storage.manifest import NAME as MANIFEST
from storage.manifest import Manifest
from storage.naming import check_inside

MOST_MANIFEST_BYTES = 64 << 20
"""Of some 400,000 objects."""


class FetchFailed(Exception):
    """What was fetched could not be kept, or is not what was announced; nothing is left of it."""


def fetch_artifact(client: Client, artifact: ArtifactView, target: Path, watcher: Watcher) -> None:
    """A job's file as `target`. Raises FetchFailed, and as every method of Client."""
    with _whole(target, lambda part: part.touch(exist_ok=False)) as part:
        _fetch(
            client,
            artifact.href,
            part,
            artifact.size,
            artifact.sha256,
            lambda done: watcher.received(done, artifact.size),
        )


def fetch_store(client: Client, volume: VolumeView, target: Path, watcher: Watcher) -> None:
    """A volume's OME-Zarr as the folder `target`: every object is compared with the manifest, and that with
    the volume's digest. Raises as `fetch_artifact`.
    """
    address, before = f"/v1/volumes/{volume.id}/zarr/", 0
    with _whole(target, Path.mkdir) as part:
        _fetch(client, address + MANIFEST, part / MANIFEST, MOST_MANIFEST_BYTES)
        manifest = _manifest(part, volume)
        for key, entry in manifest.objects.items():
            path = part / key
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(client, address + quote(key), path, entry.size, entry.sha256)
            before += entry.size
            watcher.received(before, manifest.size)


@contextmanager
def _whole(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside `target` that becomes it when all has gone well, and is gone if not."""
    part = target.with_name(f"{target.name}.part")
    try:
        make(part)
    except FileExistsError:
        told = "another download writes it, or one was killed; remove it, or give another name"
        raise FetchFailed(f"{part} is there already: {told}") from None
    except OSError as error:
        raise FetchFailed(f"{part} could not be made: {error.strerror}") from error
    try:
        yield part
        part.rename(target)
    except OSError as error:
        raise FetchFailed(f"{target} could not be written: {error.strerror}") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)


def _manifest(folder: Path, volume: VolumeView) -> Manifest:
    """The manifest that was fetched, with names that stay within a folder."""
    try:
        manifest = Manifest.read(folder)
        for key in manifest.objects:
            check_inside(key)
    except (CorruptVolume, UnsafeArchive) as error:
        raise FetchFailed(f"the manifest of {volume.id} cannot be used: {error}") from error
    if manifest.digest != volume.digest:
        raise FetchFailed(
            f"the manifest of {volume.id} has the digest {manifest.digest}, not {volume.digest}"
        )
    return manifest


def _fetch(
    client: Client,
    address: str,
    path: Path,
    most_bytes: int,
    sha256: str | None = None,
    heard: Callable[[int], None] = lambda done: None,
) -> None:
    """Write what is at an address, no more than `most_bytes`, and compare it where a digest is known."""
    digest, done = hashlib.sha256(), 0
    with client.pieces(address) as pieces, path.open("wb") as file:
        for piece in pieces:
            done += len(piece)
            if done > most_bytes:
                raise FetchFailed(
                    f"{address} has more than {most_bytes:,} bytes, which is all that it should have: it was "
                    "damaged on the way or in the store; fetch it again"
                )
            file.write(piece)
            digest.update(piece)
            heard(done)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise FetchFailed(
            f"{address} has the sha-256 {digest.hexdigest()}, not {sha256}: it was damaged on the way or in "
            "the store; fetch it again"
        )
