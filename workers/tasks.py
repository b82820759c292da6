"""The one Celery task, and the bell that a worker rings for jobs that its own work has set free."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery import Celery
from kombu.exceptions import OperationalError

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, StorageFull
from storage.jobs import RUN_JOB, Job

if TYPE_CHECKING:
    from workers.process import WorkerProcess

log = logging.getLogger("tomotrain.workers")


def add_run_job(app: Celery, process: Callable[[], WorkerProcess]) -> None:
    """Add the task to the app. A message that comes late, twice or for an ended job does nothing."""

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        process().run(job_id)
        ring_due(process().catalogue, lambda job: send(app, job))


def send(app: Celery, job: Job) -> None:
    """Ring for a job. Raises OperationalError or OSError at once when the broker does not take it."""
    app.send_task(RUN_JOB, [job.id], queue=str(job.queue), retry=False, ignore_result=True)


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
