"""Waiting for a job to end, before its answer is sent: no thread waits, only the request does."""

from __future__ import annotations

import time

from starlette.concurrency import run_in_threadpool

from service.watching import Watcher
from storage.catalogue import Catalogue
from storage.errors import MissingJob
from storage.jobs import Job


async def at_its_end(watcher: Watcher, catalogue: Catalogue, job: Job, wait_s: float) -> Job:
    """The job as soon as it has ended; as it stands then where that takes longer than `wait_s`.

    Raises JobExpired for one that was removed meanwhile.
    """
    deadline, revision, ended = time.monotonic() + wait_s, job.revision, job.state.terminal
    while not ended and (left_s := deadline - time.monotonic()) > 0:
        try:
            glance = await watcher.watch(job.id, revision, left_s)
        except MissingJob:
            break
        if glance is None:
            break
        revision, ended = glance.revision, glance.state.terminal
    return await run_in_threadpool(catalogue.job, job.id)
