"""What a service needs to be of use, each part asked at the same time as the others and within a limit.

A part that does not answer in time is away; it is not asked again before it has answered, so that probes
of a part that hangs do not pile up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass

LIMIT_S = 2.0


@dataclass(frozen=True)
class Finding:
    """What is wrong with a part, with the cure: with a `fault` the service is of no use, with a `warning` of
    less.
    """

    fault: str = ""
    warning: str = ""

    def __str__(self) -> str:
        return self.fault or self.warning or "ok"


SOUND = Finding()
Check = Callable[[], Finding]
"""Asks a part. May raise: then the part does not answer."""


class Checks:
    """Named parts of a service. Safe for threads."""

    def __init__(self, checks: Mapping[str, Check], *, limit_s: float = LIMIT_S) -> None:
        self._checks, self._limit_s = dict(checks), limit_s
        self._pool = ThreadPoolExecutor(max_workers=len(self._checks), thread_name_prefix="check")
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Finding]] = {}

    def findings(self) -> dict[str, Finding]:
        """What is found of each part; comes back within the limit."""
        deadline = time.monotonic() + self._limit_s
        asked = {name: self._ask(name) for name in self._checks}
        return {name: self._answer(future, deadline) for name, future in asked.items()}

    def close(self) -> None:
        """Ask no more; does not wait for who has not answered."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, name: str) -> Future[Finding]:
        """The answer that is on its way, or one that is asked for now."""
        with self._lock:
            pending = self._asked.get(name)
            if pending is None or pending.done():
                pending = self._asked[name] = self._pool.submit(self._checks[name])
            return pending

    def _answer(self, asked: Future[Finding], deadline: float) -> Finding:
        try:
            return asked.result(max(0.0, deadline - time.monotonic()))
        except OutOfTime:
            return Finding(f"did not answer within {self._limit_s:g} s")
        except Exception as error:  # whatever a part raises means: it does not answer
            return Finding(f"does not answer ({type(error).__name__})")
