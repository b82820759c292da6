"""The Celery tasks, and the bells that a worker rings: for jobs that its own work has set free, and for help
with the one that it runs.
"""

from __future__ import annotations

import logging
import time
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
        if (job := process().help(job_id)) is not None:
            send_help(app, job)


def send(app: Celery, job: Job) -> None:
    """Ring for a job. Raises OperationalError or OSError at once when the broker does not take it."""
    app.send_task(RUN_JOB, [job.id], queue=str(job.queue), retry=False, ignore_result=True)


def send_help(app: Celery, job: Job) -> None:
    """Ask for a helper. A broker that does not take it costs time, nothing else."""
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


def call_helpers(
    app: Celery, catalogue: Catalogue, worker: str, alive_s: float, job: Job, count: int
) -> None:
    """Ask as many other workers as are of use, alive, and able to run such a job."""
    try:
        known = catalogue.workers()
    except (CatalogueUnavailable, StorageFull) as error:
        log.warning("job %s goes on without help: %s", job.id, error)
        return
    since = time.time() - alive_s
    able = [one for one in known if one.name != worker and job.kind in one.kinds and one.last_seen > since]
    for _ in able[:count]:
        send_help(app, job)


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
