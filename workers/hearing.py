"""Whether the parent of a pool process still hears the broker: one that does not is ended, for its supervisor
to start another.

A Celery worker can be alive and deaf: hung, without a consumer after the broker came back, or with one that
takes nothing (celery/celery#9054, #10205). The pool process, which lives on, asks it through the broker, as a
client would. It is deaf, too, where messages wait in its queues while it lets the pool process idle.

There is no verdict while the broker cannot be reached, or while a job runs: that is brought to its end first.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.connection import Connection

log = logging.getLogger("tomotrain.workers")

NO_ANSWER = "does not answer"
NO_QUEUE = "consumes from no queue"
TAKES_NONE = "leaves messages waiting"
LONGEST_CALL_S = 5.0
"""For one call of the broker."""
END_S = 10.0
"""For the parent to end by itself, before it is killed."""


class Hearing:
    """A thread of a pool process that asks its parent every `every_s`; ends it when it is deaf for `deaf_s`.

    `idle_s` tells for how long the pool process has run nothing, 0 while it runs something. `tell` is told
    each time whether the parent is taken for one that hears.
    """

    def __init__(
        self,
        app: Celery,
        worker: str,
        idle_s: Callable[[], float],
        tell: Callable[[bool], None],
        *,
        every_s: float,
        deaf_s: float,
    ) -> None:
        self._app, self._worker, self._idle_s, self._tell = app, worker, idle_s, tell
        self._every_s, self._deaf_s = every_s, deaf_s
        self._parent = os.getppid()
        self._asked_at = time.monotonic()
        self._deaf_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="hearing", daemon=True)

    def start(self) -> None:
        """Go on in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. Returns at once: the thread may be waiting for the parent, and the parent for this."""
        self._ended.set()

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            fault = self._fault()
            deaf = self._is_deaf(fault)
            self._tell(not deaf)
            if deaf and self._idle_s() > 0:
                log.critical("worker %s %s for %.0f s: it ends", self._worker, fault, self._deaf_s)
                end_parent(self._parent)

    def _is_deaf(self, fault: str | None) -> bool:
        """Whether there has been a fault each time for long enough; not where this process was suspended."""
        now, before = time.monotonic(), self._asked_at
        self._asked_at = now
        if fault is None or now - before > self._every_s + 4 * LONGEST_CALL_S:
            self._deaf_since = None
            return False
        if self._deaf_since is None:
            self._deaf_since = now
        return now - self._deaf_since >= self._deaf_s

    def _fault(self) -> str | None:
        """What is wrong with the parent; None where nothing is, or where the broker is away."""
        try:
            with broker_connection(self._app) as connection:
                queues = self._queues(connection)
                waiting = _waiting(connection, queues or ())
        except Exception as error:  # whatever a broker's client raises: the parent sees it, too
            log.debug("the broker cannot be asked: %s", error)
            return None
        if queues is None:
            return NO_ANSWER
        if not queues:
            return NO_QUEUE
        return TAKES_NONE if waiting and self._idle_s() >= self._every_s else None

    def _queues(self, connection: Connection) -> tuple[str, ...] | None:
        """The queues that the parent says it consumes from; None where it says nothing."""
        answers: list[dict[str, Any]] | None = self._app.control.broadcast(
            "active_queues",
            destination=[self._worker],
            reply=True,
            timeout=min(self._every_s / 2, LONGEST_CALL_S),
            limit=1,
            connection=connection,
        )
        for answer in answers or ():
            return tuple(queue["name"] for queue in answer.get(self._worker, ()))
        return None


def broker_connection(app: Celery) -> Connection:
    """A connection of its own, which does not wait for ever for a broker that hangs."""
    limits = {"socket_timeout": LONGEST_CALL_S, "socket_connect_timeout": LONGEST_CALL_S, "max_retries": 0}
    connection: Connection = app.connection_for_write(transport_options=limits)
    return connection


def end_parent(parent: int) -> None:
    """End the parent of this process, by force if it must be, and this process with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if os.getppid() == parent:
            os.kill(parent, number)
            deadline = time.monotonic() + END_S
            while os.getppid() == parent and time.monotonic() < deadline:
                time.sleep(0.05)
    os._exit(1)


def _waiting(connection: Connection, queues: tuple[str, ...]) -> int:
    """Messages that nobody has taken yet. A declaration is how AMQP asks; the queues are there already."""
    channel: Any = connection.default_channel
    return sum(int(channel.queue_declare(queue=queue).message_count) for queue in queues)
