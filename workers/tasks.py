"""The Celery tasks, and the bells that a worker rings: for jobs that its own work has set free, and for help
with the one that it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery import Celery
from kombu.exceptions import OperationalError

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, StorageFull
from storage.jobs import HELP_JOB, RUN_JOB, Job

if TYPE_CHECKING:
    from workers.process import WorkerProcess

log = logging.getLogger("tomotrain.workers")

HELP_EXPIRES_S = 600.0
"""A call for help that nobody has heard by then is dropped."""


def add_tasks(app: Celery, process: Callable[[], WorkerProcess]) -> None:
    """Add the tasks to the app. A message that comes late, twice or for an ended job does nothing."""

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        process().run(job_id)
        ring_due(process().catalogue, lambda job: send(app, job))

    @app.task(name=HELP_JOB)  # type: ignore[untyped-decorator]
    def help_job(job_id: str) -> None:
        job = process().help(job_id)
        if job is not None and not process().is_wanted():
            send_help(app, job)


def send(app: Celery, job: Job) -> None:
    """Ring for a job. Raises OperationalError or OSError at once when the broker does not take it."""
    app.send_task(RUN_JOB, [job.id], queue=str(job.queue), retry=False, ignore_result=True)


def send_help(app: Celery, job: Job) -> bool:
    """Ask for a helper; whether the broker took it. One that does not costs time, nothing else."""
    try:
        app.send_task(
            HELP_JOB,
            [job.id],
            queue=str(job.queue),
            retry=False,
            ignore_result=True,
            expires=HELP_EXPIRES_S,
        )
    except (OperationalError, OSError) as error:
        log.warning("job %s goes on without help: %s", job.id, error)
        return False
    return True


def call_helpers(app: Celery, catalogue: Catalogue, seen_within_s: float, job: Job, count: int) -> None:
    """Ask as many workers as are of use, alive, idle, and able to run such a job. Returns at once: a broker
    or a database that does not answer must not hold up the job.
    """

    def call() -> None:
        try:
            idle = catalogue.idle_workers(job.kind, seen_within_s)
        except (CatalogueUnavailable, StorageFull) as error:
            log.warning("job %s goes on without help: %s", job.id, error)
            return
        for _ in idle[:count]:
            if not send_help(app, job):
                break

    threading.Thread(target=call, name=f"call-{job.id}", daemon=True).start()


def ring_due(catalogue: Catalogue, ring: Callable[[Job], None]) -> None:
    """Sweep once, and ring: jobs that waited for an ingest need not wait for the service's next sweep."""
    rung = []
    try:
        for job in catalogue.sweep():
            ring(job)
            rung.append(job.id)
    except (OperationalError, OSError, CatalogueUnavailable, StorageFull) as error:
        log.warning("jobs are left to the next sweep: %s", error)
    if rung:
        catalogue.rang(rung)
