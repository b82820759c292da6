"""Scans from a client's side: sent unless the service has them, and waited for until they have been read."""

from __future__ import annotations

from pathlib import Path

from service.client import Client
from service.cohort_table import VOLUME_ID
from service.packing import refuse_missing, sendable
from service.schemas import VolumeView
from service.watcher import Watcher
from storage.records import VolumeState


def refuse_unknown(scan: str) -> None:
    """Raise NothingToSend for what is neither a volume's id nor a path of something."""
    if not VOLUME_ID.fullmatch(scan):
        refuse_missing(Path(scan))


def ready_volume(client: Client, scan: str, watcher: Watcher) -> str:
    """The id of a volume that has been read: a file or folder, or an id already.

    Raises NothingToSend, and ServiceProblem for a scan that is refused.
    """
    if VOLUME_ID.fullmatch(scan):
        return scan
    return ready(client, sent(client, Path(scan), watcher), watcher)


def sent(client: Client, scan: Path, watcher: Watcher | None = None) -> VolumeView:
    """The volume of a scan: one that the service has already, or a new one."""
    with sendable(scan) as file:
        if known := client.sent_before(file):
            return known
        size = file.stat().st_size

        def heard(done: int) -> None:
            if watcher is not None:
                watcher.sent(done, size)

        heard(0)
        return client.upload(file, on_sent=heard).volume


def ready(client: Client, volume: VolumeView, watcher: Watcher | None = None) -> str:
    """The id of a volume, once it has been read."""
    if volume.state is not VolumeState.READY:
        client.wait(volume.ingest_job, on_change=watcher.job if watcher else lambda job: None)
    return volume.id
