"""Finds jobs that nobody works on and rings them again: a thread beside the web server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from service.idempotency import KEPT_S
from service.queue import JobQueue
from storage.catalogue import Catalogue
from storage.clearing import clear_all
from storage.dicom_collections import QUIET_S, DicomCollections
from storage.dicom_series import SeriesIndex
from storage.jobs import Job
from storage.tidy import tidy

log = logging.getLogger("tomotrain.service")

TIDY_EVERY_S = 60.0


class Sweeper:
    """Every `every_s` seconds: let the catalogue requeue expired leases, and ring what waits too long.

    Once a minute it also removes what lost workers left on disk, and what is kept no longer: jobs that ended
    `jobs_kept_s` seconds ago, and the keys of old requests. Series that came by DICOMweb become volumes when
    nothing was added to them for `stow_quiet_s` seconds.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        queue: JobQueue,
        data_root: Path,
        *,
        every_s: float,
        ring_after_s: float,
        jobs_kept_s: float,
        stow_quiet_s: float = QUIET_S,
    ) -> None:
        self._collections = DicomCollections(catalogue.database, data_root, stow_quiet_s)
        self._series = SeriesIndex(catalogue.database)
        self._catalogue, self._queue, self._data_root = catalogue, queue, data_root
        self._tidied_at = float("-inf")
        self._every_s, self._ring_after_s, self._jobs_kept_s = every_s, ring_after_s, jobs_kept_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has ended."""
        self._stop.set()
        self._thread.join()

    def sweep(self) -> int:
        """Sweep once; how many jobs were rung."""
        return self._ring(self._catalogue.sweep(ring_after_s=self._ring_after_s))

    def collect(self) -> int:
        """Make volumes of the series that have come by DICOMweb; how many jobs were rung."""
        return self._ring(self._collections.close_quiet())

    def _ring(self, jobs: Iterable[Job]) -> int:
        """Ring for jobs, how many; stops at the first refusal: the broker is away."""
        rung = []
        for job in jobs:
            if not self._queue.ring(job):
                break
            rung.append(job.id)
        if rung:
            self._catalogue.rang(rung)
        return len(rung)

    def tidy(self) -> None:
        """Remove what is left or kept no longer, unless that was done less than a minute ago."""
        if time.monotonic() - self._tidied_at >= TIDY_EVERY_S:
            tidy(self._data_root, self._catalogue)
            self.forget()
            self._tidied_at = time.monotonic()

    def forget(self) -> None:
        """Remove jobs whose time is over, the files of removed ones, and the keys of old requests."""
        self._catalogue.forget_requests(KEPT_S)
        self._catalogue.expire(self._jobs_kept_s)
        clear_all(self._data_root, self._catalogue)

    def _run(self) -> None:
        self._try(self._series.enter_missing)
        while not self._stop.wait(self._every_s):
            for step in (self.collect, self.sweep, self.tidy):
                self._try(step)

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:  # a database that is away now may be back at the next round
            log.exception("a sweep failed")
