"""What the process that runs jobs owns: catalogue, runner and presence. Made after the fork."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, StorageFull
from storage.jobs import Job, JobState
from storage.tidy import tidy
from workers import tracing
from workers.cancelling import end_process
from workers.device import resolve_device
from workers.jobs.base import AnyKind
from workers.presence import Presence
from workers.runner import Runner
from workers.settings import WorkerSettings

log = logging.getLogger("tomotrain.workers")

PATIENCE_S = 60.0
"""How long a starting worker waits for its database."""
PAUSE_S = 1.0
ALIVE = 3.0
"""A worker that has missed so many signs of life is not called for help."""
CallHelpers = Callable[[Catalogue, float, Job, int], None]
"""As `workers.tasks.call_helpers`, without the app."""


class WorkerProcess:
    """One process that runs one job at a time. Raises CatalogueUnavailable when the database stays away."""

    def __init__(
        self,
        settings: WorkerSettings,
        kinds: Sequence[AnyKind],
        name: str,
        call_helpers: CallHelpers = lambda catalogue, seen_within_s, job, count: None,
    ) -> None:
        self.catalogue = _open_patiently(settings.catalogue_url)
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes the values that it doubts
        device = resolve_device(settings.device)
        announcements = [kind.announcement() for kind in kinds]
        self._runner = Runner(
            self.catalogue,
            kinds,
            settings,
            worker=name,
            device=device,
            call_helpers=partial(call_helpers, self.catalogue, ALIVE * settings.presence_s),
            end=end_process,
        )
        self._presence = Presence(self.catalogue, name, announcements, device, every_s=settings.presence_s)
        self._idle_since: float | None = time.monotonic()
        tidy(settings.data_root, self.catalogue)
        self._presence.start()
        log.info("worker %s runs %s on %s", name, ", ".join(kind.name for kind in kinds), device)

    def run(self, job_id: str) -> None:
        """Run a job, if it is to be had; whatever happens is in the catalogue or in the log."""
        try:
            with self._busy():
                self._runner.run(job_id)
        except (CatalogueUnavailable, StorageFull):
            log.exception("job %s is left to its lease: the catalogue does not take an answer", job_id)

    def help(self, job_id: str) -> Job | None:
        """Help another worker with a job for a while; the job, if there may be more to do."""
        with self._busy():
            return self._runner.help(job_id)

    def is_wanted(self) -> bool:
        """Whether jobs wait for a worker: then this one has no time to help again."""
        try:
            return bool(self.catalogue.jobs(state=JobState.QUEUED, limit=1))
        except (CatalogueUnavailable, StorageFull):
            return True

    def idle_s(self) -> float:
        """For how long it has run nothing; 0 while it runs something."""
        since = self._idle_since
        return 0.0 if since is None else time.monotonic() - since

    def heard(self, hears: bool) -> None:
        """Whether messages reach this worker: while they do not, it gives no sign of life."""
        self._presence.heard(hears)

    def close(self) -> None:
        """Let go of the database."""
        self._presence.stop()
        self.catalogue.close()
        tracing.flush()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._idle_since = None
        try:
            yield
        finally:
            self._idle_since = time.monotonic()


def _open_patiently(url: str) -> Catalogue:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Catalogue.open(url)
        except CatalogueUnavailable:
            if time.monotonic() > deadline:
                raise
            log.warning("the catalogue does not answer yet")
            time.sleep(PAUSE_S)
