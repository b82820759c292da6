"""The lease on a running job: a thread renews it, carries progress out and bad news in."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from storage.catalogue import Catalogue
from storage.errors import StorageError
from storage.jobs import Job, Progress
from workers.cancelling import Oversight
from workers.settings import WorkerSettings

LONGEST_PAUSE_S = 1.0
"""Between two beats: how old progress and a wish to cancel may become."""


class Lease:
    """Held while a job runs; a context manager. Renewed every third of its length, or every second.

    `overdue` is called where the job was to stop and has not; see `Oversight`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        job: Job,
        settings: WorkerSettings,
        overdue: Callable[[StorageError], None] | None = None,
    ) -> None:
        self._catalogue, self._job, self._lease_s = catalogue, job, settings.lease_s
        self._progress: Progress | None = None
        self._written: Progress | None = None
        self._oversight = Oversight(
            self._beat,
            overdue,
            name=f"lease-{job.id}",
            every_s=min(settings.lease_s / 3, LONGEST_PAUSE_S),
            grace_s=settings.cancel_grace_s,
            silence_s=settings.lease_s + settings.silence_s,
        )

    def report(self, progress: Progress) -> None:
        """Tell how far the job is; cheap, as often as one likes.

        Raises JobCancelled or LeaseLost once the job is to stop.
        """
        self._progress = progress
        self.check()

    def check(self) -> None:
        """Raise JobCancelled or LeaseLost once the job is to stop."""
        if self._oversight.verdict is not None:
            raise self._oversight.verdict

    def __enter__(self) -> Lease:
        self._oversight.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._oversight.__exit__(kind, error, trace)

    def _beat(self) -> None:
        progress = self._progress
        news = None if progress == self._written else progress
        self._catalogue.heartbeat(self._job.id, self._job.attempt, self._lease_s, news)
        self._written = progress
