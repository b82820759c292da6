"""Denoising and completion from a client's side: send what the service has not, submit, wait."""

from __future__ import annotations

from typing import Any

from service.client import Client
from service.compression import Compressed
from service.sending import ready_volume
from service.watcher import Watcher

Restored = Compressed
"""A volume, the one that was made of it, and the job that made it."""


def restore(client: Client, kind: str, scan: str, parameters: dict[str, Any], watcher: Watcher) -> Restored:
    """Have a volume made of a scan by a job of this kind: a file or folder, or a volume's id.

    Raises NothingToSend, and ServiceProblem when a scan is refused or the job fails.
    """
    source = ready_volume(client, scan, watcher)
    job = client.submit(kind, parameters, volume_id=source)
    done = client.wait(job.id, on_change=watcher.job)
    return Restored(client.volume(source), client.volume((done.result or {})["volume_id"]), done)
