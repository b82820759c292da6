"""The lease on a running job: a thread renews it, carries progress out and bad news in."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from storage.catalogue import Catalogue
from storage.errors import JobCancelled, LeaseLost, StorageError
from storage.jobs import Job, Progress

log = logging.getLogger("tomotrain.workers")

LONGEST_PAUSE_S = 1.0
"""Between two beats: how old progress and a wish to cancel may become."""


class Lease:
    """Held while a job runs; a context manager. Renewed every third of its length, or every second."""

    def __init__(self, catalogue: Catalogue, job: Job, lease_s: float) -> None:
        self._catalogue, self._job, self._lease_s = catalogue, job, lease_s
        self._progress: Progress | None = None
        self._written: Progress | None = None
        self._verdict: StorageError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job.id}", daemon=True)

    def report(self, progress: Progress) -> None:
        """Tell how far the job is; cheap, as often as one likes.

        Raises JobCancelled or LeaseLost once the job is to stop.
        """
        self._progress = progress
        self.check()

    def check(self) -> None:
        """Raise JobCancelled or LeaseLost once the job is to stop."""
        if self._verdict is not None:
            raise self._verdict

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        pause = min(self._lease_s / 3, LONGEST_PAUSE_S)
        while not self._ended.wait(pause) and not isinstance(self._verdict, LeaseLost):
            self._beat()

    def _beat(self) -> None:
        progress = self._progress
        news = None if progress == self._written else progress
        try:
            self._catalogue.heartbeat(self._job.id, self._job.attempt, self._lease_s, news)
            self._written = progress
        except (LeaseLost, JobCancelled) as verdict:
            self._verdict = verdict
        except Exception:  # a database that is away now may be back before the lease has run out
            log.exception("job %s: the lease could not be renewed", self._job.id)
