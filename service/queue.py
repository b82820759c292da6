"""The doorbell. It tells workers that a job waits; it may be lost or rung twice, the catalogue decides."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Protocol

from celery import Celery
from kombu.exceptions import OperationalError

from storage.jobs import RUN_JOB, Job

log = logging.getLogger("tomotrain.service")

_TIMEOUT_S = 1.0


class JobQueue(Protocol):
    """Where jobs are rung. Neither method ever raises: a queue that is down is an answer, not an error."""

    def ring(self, job: Job) -> bool:
        """Tell a worker about the job; False when the broker does not take it now."""

    def reachable(self) -> bool:
        """Whether the broker answers."""


class CeleryQueue:
    """Rings over Celery: one message to the job's queue that carries nothing but the job's id.

    A message is tried once, with short timeouts: when the broker is away the catalogue's sweep rings again.
    """

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("tomotrain", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            broker_connection_retry=False,
            broker_transport_options=_transport_options(broker_url),
        )

    def ring(self, job: Job) -> bool:
        """Tell a worker about the job; False when the broker does not take it now."""
        try:
            self._app.send_task(RUN_JOB, [job.id], queue=str(job.queue), retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("the broker does not take job %s: %s", job.id, error)
            return False
        return True

    def reachable(self) -> bool:
        """Whether the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                connection.default_channel.client.ping()
        except Exception as error:  # whatever the transport raises means: it does not answer
            log.warning("the broker does not answer: %s", error)
            return False
        return True


class MemoryQueue:
    """Keeps what was rung: for one process, and for tests. `down` makes it refuse."""

    def __init__(self) -> None:
        self.rung: Counter[str] = Counter()
        self.down = False

    def ring(self, job: Job) -> bool:
        """Remember the job, unless the queue is down."""
        if not self.down:
            self.rung[job.id] += 1
        return not self.down

    def reachable(self) -> bool:
        """Whether the queue is up."""
        return not self.down


def _transport_options(broker_url: str) -> dict[str, Any]:
    """Give up soon: one retry, at once (0 retries would mean for ever)."""
    options: dict[str, Any] = {
        "socket_timeout": _TIMEOUT_S,
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    }
    if not broker_url.startswith("redis+socket"):
        options["socket_connect_timeout"] = _TIMEOUT_S
    return options
