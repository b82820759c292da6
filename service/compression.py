"""Compression and export from a client's side: send a scan unless the service has it, submit, wait, fetch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client import Client
from service.fetching import fetch_artifact
from service.schemas import JobView, VolumeView
from service.sending import ready_volume
from service.watcher import Watcher


@dataclass(frozen=True)
class Compressed:
    """A volume, the compressed one that was made of it, and the job that made it."""

    source: VolumeView
    volume: VolumeView
    job: JobView


def compress(client: Client, scan: str, parameters: dict[str, Any], watcher: Watcher) -> Compressed:
    """Have a scan compressed: a file or folder, or a volume's id.

    Raises NothingToSend, and ServiceProblem when the scan is refused or a job fails.
    """
    source = ready_volume(client, scan, watcher)
    job = client.submit("compress", parameters, volume_id=source)
    done = client.wait(job.id, on_change=watcher.job)
    return Compressed(client.volume(source), client.volume((done.result or {})["volume_id"]), done)


def export(client: Client, scan: str, parameters: dict[str, Any], target: Path, watcher: Watcher) -> JobView:
    """Have a volume written as one file, and fetch it as `target`. Raises as `compress`, and FetchFailed."""
    volume_id = ready_volume(client, scan, watcher)
    job = client.submit("export", parameters, volume_id=volume_id)
    done = client.wait(job.id, on_change=watcher.job)
    (artifact,) = done.artifacts
    fetch_artifact(client, artifact, target, watcher)
    return done
