"""Work that does not stop when it is to: its process ends, and Celery's parent puts another in its place.

A job learns at its next `report` that it is to stop. One that comes to none, in a long kernel, a loop or a
sleep, is given a grace, and then ends with its process: nothing else stops native code. Code that holds the
interpreter's lock lets no Python thread run, not even the one that would end the process; there a switch of
CPython's own does it (`faulthandler.dump_traceback_later`, a C thread that needs no lock).

A process that was suspended (SIGSTOP, a debugger, a virtual machine) for longer than the switch waits ends
when it goes on: its lease ran out long before, and another attempt has its work.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from storage.errors import JobCancelled, LeaseLost, StorageError

log = logging.getLogger("tomotrain.workers")

LAST_WORD_S = 3.0
"""What is left, when the grace is over, to record the end in the catalogue."""
STDERR = 2
"""The file descriptor: in a pool process `sys.stderr` is Celery's, and has none."""


def end_process() -> NoReturn:
    """End this process at once, whatever its other threads do."""
    os._exit(1)


class Oversight:
    """A thread beside work, which asks again and again whether the work is to go on; a context manager.

    `ask` raises JobCancelled or LeaseLost when it is not; any other error is logged, and `ask` is called
    again. From the first such verdict the work has `grace_s` to stop; then `overdue` is called with the
    verdict, to say the last word and to end the process. The switch ends it `LAST_WORD_S` later in any case,
    and also when this thread had no turn for `silence_s`. Where `overdue` is None, in a process that is not
    the work's own, there is no grace and no switch: the work stops when it does.
    """

    def __init__(
        self,
        ask: Callable[[], None],
        overdue: Callable[[StorageError], None] | None,
        *,
        name: str,
        every_s: float,
        grace_s: float,
        silence_s: float,
    ) -> None:
        self._ask, self._overdue = ask, overdue
        self._every_s, self._grace_s, self._silence_s = every_s, grace_s, silence_s
        self._stop_by: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self.verdict: StorageError | None = None

    def __enter__(self) -> Oversight:
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._overdue is not None:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._arm()
            if not isinstance(self.verdict, LeaseLost):
                self._ask_once()
            if self.verdict is not None:
                self._insist(self.verdict)

    def _ask_once(self) -> None:
        try:
            self._ask()
        except (JobCancelled, LeaseLost) as verdict:
            self.verdict = verdict
        except Exception:  # a database that is away now may be back before the lease has run out
            log.exception("%s: the catalogue could not be asked", self._thread.name)

    def _insist(self, verdict: StorageError) -> None:
        """From now on the work is to stop, and when its grace is over it is stopped."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._grace_s
            self._arm()
        if self._overdue and time.monotonic() >= self._stop_by and not self._ended.is_set():
            self._overdue(verdict)

    def _arm(self) -> None:
        """Set the switch anew: to the end of all patience, or to when the work must have stopped."""
        if self._overdue is None:
            return
        left = self._silence_s
        if self._stop_by is not None:
            left = max(self._stop_by + LAST_WORD_S - time.monotonic(), LAST_WORD_S)
        faulthandler.dump_traceback_later(left, file=STDERR, exit=True)
