"""Runs one job: claim, check the budget, compute under a lease, publish or give up. Knows no Celery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, CorruptVolume, JobCancelled, LeaseLost, StorageError
from storage.jobs import Job, JobState, Progress
from storage.tidy import tidy_job
from workers.cancelling import Oversight
from workers.context import JobContext
from workers.failures import cause_of, error_record
from workers.jobs.base import AnyKind
from workers.journal import Journal
from workers.lease import LONGEST_PAUSE_S, Lease
from workers.memory import default_budget, reset_peak
from workers.settings import WorkerSettings
from workers.tracing import JobSpan, job_span

log = logging.getLogger("tomotrain.workers")

HELP_S = 10.0
"""How long a worker helps before it looks for jobs of its own."""


class Runner:
    """Runs jobs of the given kinds as the worker `worker`, one at a time.

    `end` ends the process, which is for a job that is to stop and does not; without it such a job goes on.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        kinds: Iterable[AnyKind],
        settings: WorkerSettings,
        *,
        worker: str,
        device: str,
        call_helpers: Callable[[Job, int], None] = lambda job, count: None,
        end: Callable[[], None] | None = None,
    ) -> None:
        self._catalogue, self._settings = catalogue, settings
        self._kinds = {kind.name: kind for kind in kinds}
        self._worker, self._device, self._call_helpers = worker, device, call_helpers
        self._end = end
        self._memory_budget = settings.memory_budget_bytes or default_budget(settings.memory_share)

    def run(self, job_id: str) -> Job | None:
        """Run the job if it is to be had, to whatever end; the job as it is then.

        None when it is another worker's: by its kind, by a claim, or by a lease that this one lost. Raises
        CatalogueUnavailable or StorageFull where the catalogue does not take an answer: then the lease
        runs out, and another attempt is made.
        """
        job = self._catalogue.claim(job_id, self._worker, self._settings.lease_s, kinds=self._kinds.keys())
        if job is None:
            return None
        with job_span(job) as span, Journal(self._settings.data_root, job) as journal:
            return self._attempt(job, journal, span)

    def help(self, job_id: str) -> Job | None:
        """Do a part of a job that another worker runs, for a while; the job, if there may be more to do.

        Whatever goes wrong here is the other's to find: it does all that nobody else has done.
        """
        try:
            job = self._catalogue.job(job_id)
            kind = self._kinds.get(job.kind)
            if kind is None or job.state is not JobState.RUNNING:
                return None
            context, parameters = self._context(job, _nothing), kind.parse(job.parameters)
            context.require_memory(kind.memory_bytes(context, parameters))
            with self._helping(job):
                return job if kind.help(context, parameters, time.monotonic() + HELP_S) else None
        except LeaseLost:
            log.info("job %s needs no help any more", job_id)
            return None
        except Exception as error:
            log.warning("no more help with job %s: %s", job_id, error)
            return None

    def _attempt(self, job: Job, journal: Journal, span: JobSpan) -> Job | None:
        """From the claim to the end, whatever it is."""
        journal.begun()
        try:
            ended: Job | None = self._complete(job, journal, span)
        except CatalogueUnavailable as error:
            journal.failed(error, error.code)
            raise  # whether the result was published is unknown: the next attempt will see
        except Exception as error:
            ended = self._give_up(job, cause_of(error), journal)
        tidy_job(self._settings.data_root, self._catalogue.job(job.id))
        journal.ended(ended)
        span.ended(ended)
        return ended

    def _complete(self, job: Job, journal: Journal, span: JobSpan) -> Job:
        """Compute and publish."""
        kind = self._kinds[job.kind]
        overdue = self._end and partial(self._abandon, self._end, job, journal)
        with Lease(self._catalogue, job, self._settings, overdue) as lease:

            def report(progress: Progress) -> None:
                journal.progress(progress)
                span.progress(progress)
                lease.report(progress)

            tidy_job(self._settings.data_root, job)
            context = self._context(job, report)
            parameters = kind.parse(job.parameters)
            context.require_memory(kind.memory_bytes(context, parameters))
            reset_peak()
            outcome = kind.run(context, parameters)
        return self._catalogue.finish(
            job.id,
            job.attempt,
            outcome.result.model_dump(mode="json"),
            artifacts=outcome.artifacts,
            volume=outcome.volume,
            store=outcome.store,
            derived=outcome.derived,
        )

    def _context(self, job: Job, report: Callable[[Progress], None]) -> JobContext:
        """What the job may use."""
        return JobContext(
            job=job,
            record=None if job.volume_id is None else self._catalogue.volume(job.volume_id),
            settings=self._settings,
            device=self._device,
            memory_budget=self._memory_budget,
            report=report,
            find_volume=partial(self._catalogue.volume, project_id=job.project_id),
            find_job=partial(self._catalogue.job, project_id=job.project_id),
            call_helpers=partial(self._call_helpers, job),
        )

    def _abandon(self, end: Callable[[], None], job: Job, journal: Journal, verdict: StorageError) -> None:
        """Say the last word for a job that does not stop, and end the process with it.

        What it wrote is removed by the next process, at its start.
        """
        try:
            journal.overdue(self._settings.cancel_grace_s)
            journal.ended(self._give_up(job, verdict, journal))
        except Exception:  # the lease runs out, and the sweep says it
            log.exception("job %s ends with its process, and the catalogue could not be told", job.id)
        finally:
            end()

    def _helping(self, job: Job) -> Oversight:
        """Sees to it that help does not outlast the attempt that it is for."""

        def check() -> None:
            now = self._catalogue.job(job.id)
            if now.state is not JobState.RUNNING or now.attempt != job.attempt:
                raise LeaseLost(job.id, job.attempt)

        def abandon(end: Callable[[], None], verdict: StorageError) -> None:
            log.error("help with job %s does not end: its process does", job.id)
            end()

        return Oversight(
            check,
            self._end and partial(abandon, self._end),
            name=f"help-{job.id}",
            every_s=LONGEST_PAUSE_S,
            grace_s=self._settings.cancel_grace_s,
            silence_s=self._settings.lease_s + self._settings.silence_s,
        )

    def _give_up(self, job: Job, error: BaseException, journal: Journal) -> Job | None:
        """Say why there is no result, if this attempt still has a say."""
        try:
            if isinstance(error, LeaseLost):
                return None
            if isinstance(error, JobCancelled):
                return self._catalogue.cancelled(job.id, job.attempt)
            record = error_record(error)
            journal.failed(error, record["code"])
            failed = self._catalogue.fail(
                job.id,
                job.attempt,
                record,
                retry_pause_s=self._settings.retry_pause_s,
                quarantine=isinstance(error, CorruptVolume) and error.volume_id in (None, job.volume_id),
            )
            if isinstance(error, CorruptVolume) and error.volume_id is not None:
                self._catalogue.quarantine(error.volume_id, record)
            return failed
        except LeaseLost:
            return None


def _nothing(progress: Progress) -> None:
    """Who helps reports to nobody."""
