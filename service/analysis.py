"""The main job from a client's side: send a scan, wait until it is read, have it embedded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.client import Client
from service.packing import sendable
from service.schemas import JobView, VolumeView
from service.terminal import words


@dataclass(frozen=True)
class Found:
    """A scan as it was stored, and the job that embedded it."""

    volume: VolumeView
    job: JobView


class Watcher:
    """Progress bars on a console: one for the upload, one for each job. A context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<8}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Watcher:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def sent(self, done: int, total: int) -> None:
        """So many bytes of the upload have gone out."""
        self._show("upload", done, total, f"{done / 1e6:.1f} of {total / 1e6:.1f} MB")

    def step(self, name: str, done: int, total: int, unit: str) -> None:
        """So many of some things are done."""
        self._show(name, done, total, f"{done:,} of {total:,} {unit}")

    def job(self, job: JobView) -> None:
        """A job has a new state."""
        progress = job.progress
        if job.state.terminal:
            self._show(job.kind, 1, 1, job.state)
        elif progress is None:
            self._show(job.kind, 0, None, job.state)
        else:
            total = "" if progress.total is None else f" of {progress.total:,}"
            counts = f"{progress.phase} {progress.done:,}{total} {progress.unit}".rstrip()
            self._show(job.kind, progress.done, progress.total, counts)

    def _show(self, name: str, done: float, total: float | None, counts: str) -> None:
        if name not in self._rows:
            self._rows[name] = self._progress.add_task(name, total=None, counts="")
        self._progress.update(self._rows[name], completed=done, total=total, counts=words(counts).plain)


def analyze_scan(client: Client, scan: Path, parameters: dict[str, Any], watcher: Watcher) -> Found:
    """Send a scan (file or folder) and have it embedded.

    Raises NothingToSend, and ServiceProblem when the scan is refused or a job fails.
    """
    with sendable(scan) as file:
        size = file.stat().st_size
        watcher.sent(0, size)
        accepted = client.upload(file, on_sent=lambda sent: watcher.sent(sent, size))
    client.wait(accepted.job.id, on_change=watcher.job)
    job = client.submit("embed", parameters, volume_id=accepted.volume.id)
    done = client.wait(job.id, on_change=watcher.job)
    return Found(client.volume(accepted.volume.id), done)
