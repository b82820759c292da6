"""Progress on a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.schemas import JobView
from service.terminal import words


class Watcher:
    """Progress bars on a console: one for what is sent or fetched, one for each job. A context manager."""

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

    def received(self, done: int, total: int) -> None:
        """So many bytes of a download have come in."""
        self._show("download", done, total, f"{done / 1e6:.1f} of {total / 1e6:.1f} MB")

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
