"""A worker's signs of life: it announces what it can do, then says again and again that it is there, for as
long as messages reach it (workers/hearing.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from storage.catalogue import Catalogue
from storage.jobs import JobKind

log = logging.getLogger("tomotrain.workers")


class Presence:
    """Announces at `start`; from then on a thread says every `every_s` seconds that the worker lives."""

    def __init__(
        self, catalogue: Catalogue, worker: str, kinds: Sequence[JobKind], device: str, *, every_s: float
    ) -> None:
        self._catalogue, self._worker, self._kinds, self._device = catalogue, worker, kinds, device
        self._every_s = every_s
        self._heard = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def start(self) -> None:
        """Announce the worker, and go on in a thread."""
        self._catalogue.announce(self._worker, self._kinds, self._device)
        self._thread.start()

    def heard(self, hears: bool) -> None:
        """Whether messages reach the worker: while they do not, it gives no sign of life."""
        self._heard = hears

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            if not self._heard:
                continue
            try:
                self._catalogue.worker_seen(self._worker)
            except Exception:  # a database that is away now may be back at the next sign
                log.exception("worker %s could not show itself", self._worker)
