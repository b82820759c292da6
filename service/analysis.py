"""The main job from a client's side: send a scan, wait until it is read, have it embedded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.client import Client
from service.schemas import JobView, VolumeView
from service.sending import ready_volume
from service.watcher import Watcher


@dataclass(frozen=True)
class Found:
    """A scan as it was stored, and the job that embedded it."""

    volume: VolumeView
    job: JobView


def analyze_scan(client: Client, scan: str, parameters: dict[str, Any], watcher: Watcher) -> Found:
    """Have a scan embedded: a file or folder, which is sent unless the service has it, or a volume's id.

    Raises NothingToSend, and ServiceProblem when the scan is refused or a job fails.
    """
    volume_id = ready_volume(client, scan, watcher)
    job = client.submit("embed", parameters, volume_id=volume_id)
    done = client.wait(job.id, on_change=watcher.job)
    return Found(client.volume(volume_id), done)
