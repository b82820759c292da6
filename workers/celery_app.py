"""The Celery application: how messages travel, and what happens when a pool process starts and ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery, bootsteps
from celery.signals import setup_logging, worker_init, worker_process_init, worker_process_shutdown

from storage.jobs import Queue
from storage.log_lines import set_up
from workers.hearing import Hearing
from workers.settings import WorkerSettings
from workers.tasks import add_tasks, call_helpers

if TYPE_CHECKING:
    from workers.jobs.base import AnyKind
    from workers.process import WorkerProcess

KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}
"""A broker whose machine vanished is noticed after a minute, not after the two hours that systems wait."""
START_S = 120.0
"""How long a pool process may take to import torch, reach the database and announce itself."""
LOOK_S = 0.5
"""Between two looks whether the pool process is there."""


def create_app(settings: WorkerSettings, load_kinds: Callable[[], Sequence[AnyKind]]) -> Celery:
    """The application of a worker that runs the kinds that `load_kinds` returns.

    `load_kinds` is called in each pool process, after the fork: torch, zarr's event loop and Dask's
    threads are never touched in the parent, where they would hang or break their children.
    """
    app = Celery("tomotrain", broker=settings.broker)
    app.conf.update(celery_settings(settings))
    app.steps["consumer"].add(Replacement)
    lifetime = _Lifetime(app, settings, load_kinds)
    add_tasks(app, lifetime.process)
    setup_logging.connect(lambda **_: set_up(settings.log_format), weak=False)
    worker_init.connect(lifetime.remember_name, weak=False)
    worker_process_init.connect(lifetime.begin, weak=False)
    worker_process_shutdown.connect(lifetime.end, weak=False)
    return app


def celery_settings(settings: WorkerSettings) -> dict[str, Any]:
    """Celery's settings. The catalogue decides what runs; a message that is lost or doubled does no harm.

    A lost worker's message is acknowledged, not delivered again: the sweep rings, and counts attempts.
    `unacked_restore_*`: kombu looks for messages of dead consumers every 5 s, not every 100 s.
    """
    return {
        "accept_content": ["json"],
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "health_check_interval": 30,
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "visibility_timeout": settings.visibility_timeout_s,
        },
        "task_acks_late": True,
        "task_default_queue": str(Queue.BATCH),
        "task_ignore_result": True,
        "task_queues": {str(queue): {"exchange": str(queue), "routing_key": str(queue)} for queue in Queue},
        "task_reject_on_worker_lost": False,
        "task_serializer": "json",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": START_S,
    }


class Replacement(bootsteps.StartStopStep):  # type: ignore[misc]
    """In the parent: puts a new pool process in the place of one that has ended, soon.

    Celery looks when the process's files are closed, which is often before it can be waited for, and then
    not before five seconds have passed.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """At every connection to the broker, which clears the timers."""
        parent.timer.call_repeatedly(LOOK_S, parent.pool.maintain_pool)


class _Lifetime:
    """From a pool process's start to its end."""

    def __init__(
        self, app: Celery, settings: WorkerSettings, load_kinds: Callable[[], Sequence[AnyKind]]
    ) -> None:
        self._app, self._settings, self._load_kinds = app, settings, load_kinds
        self._name = "worker"
        self._process: WorkerProcess | None = None
        self._hearing: Hearing | None = None

    def remember_name(self, sender: Any, **_: Any) -> None:
        """In the parent: the name that `celery worker --hostname` gave."""
        self._name = sender.hostname

    def begin(self, **_: Any) -> None:
        """In a fresh pool process. A worker that cannot begin ends, and its supervisor starts it again."""
        from workers.process import WorkerProcess  # noqa: PLC0415 - heavy, and only after the fork

        process = WorkerProcess(
            self._settings, self._kinds(), self._name, call_helpers=partial(call_helpers, self._app)
        )
        self._process = process
        self._hearing = Hearing(
            self._app,
            self._name,
            process.idle_s,
            process.heard,
            every_s=self._settings.hearing_s,
            deaf_s=self._settings.deaf_s,
        )
        self._hearing.start()

    def _kinds(self) -> list[AnyKind]:
        """Those whose queues the command line gave to this worker (`--queues`; by default all)."""
        queues = self._app.amqp.queues.consume_from
        return [kind for kind in self._load_kinds() if kind.queue in queues]

    def end(self, **_: Any) -> None:
        """At the end of a pool process."""
        if self._hearing is not None:
            self._hearing.stop()
        if self._process is not None:
            self._process.close()

    def process(self) -> WorkerProcess:
        """This pool process; made now if its start had failed."""
        if self._process is None:
            self.begin()
        assert self._process is not None
        return self._process
