"""Requests that are tried again while that may help, with growing pauses and within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from service.connection import ServiceProblem, ServiceUnreachable

MOST_TRIES = 8
"""So often in a row without a byte of progress."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
_WORTH_ANOTHER_TRY = frozenset({502, 503, 504})

T = TypeVar("T")


class Tries:
    """How often something may still be tried, with growing pauses."""

    def __init__(self) -> None:
        self._left, self._pause_s = MOST_TRIES, FIRST_PAUSE_S

    def another(self, error: ServiceUnreachable | ServiceProblem) -> None:
        """Wait for the next try. Raises the error where no try is left, or none would help."""
        self._left -= 1
        if self._left <= 0 or not _may_pass(error):
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _may_pass(error: ServiceUnreachable | ServiceProblem) -> bool:
    if isinstance(error, ServiceUnreachable):
        return True
    problem = error.problem
    passing = problem.status in _WORTH_ANOTHER_TRY or problem.code in ("wrong-offset", "upload-cut")
    return problem.retryable or passing


def patiently(ask: Callable[[], T]) -> T:
    """What is asked for, tried again while that may help."""
    tries = Tries()
    while True:
        try:
            return ask()
        except (ServiceUnreachable, ServiceProblem) as error:
            tries.another(error)
