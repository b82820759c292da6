"""Finds jobs that nobody works on and rings them again: a thread beside the web server."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from service.queue import JobQueue
from storage.catalogue import Catalogue
from storage.tidy import tidy

log = logging.getLogger("tomotrain.service")

TIDY_EVERY_S = 60.0


class Sweeper:
    """Every `every_s` seconds: let the catalogue requeue expired leases, and ring what waits too long.

    Once a minute it also removes what lost workers left on disk.
    """

    def __init__(
        self, catalogue: Catalogue, queue: JobQueue, data_root: Path, *, every_s: float, ring_after_s: float
    ) -> None:
        self._catalogue, self._queue, self._data_root = catalogue, queue, data_root
        self._tidied_at = float("-inf")
        self._every_s, self._ring_after_s = every_s, ring_after_s
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
        """Sweep once; how many jobs were rung. Stops ringing at the first refusal: the broker is away."""
        rung = []
        for job in self._catalogue.sweep(ring_after_s=self._ring_after_s):
            if not self._queue.ring(job):
                break
            rung.append(job.id)
        if rung:
            self._catalogue.rang(rung)
        return len(rung)

    def tidy(self) -> None:
        """Remove what lost workers left, unless that was done less than a minute ago."""
        if time.monotonic() - self._tidied_at >= TIDY_EVERY_S:
            tidy(self._data_root, self._catalogue)
            self._tidied_at = time.monotonic()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.sweep()
                self.tidy()
            except Exception:  # a database that is away now may be back at the next round
                log.exception("a sweep failed")
