"""The lines in which jobs wait, as a few queries that indices bound."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from sqlalchemy import Connection, select

from storage.catalogue.part import Part
from storage.catalogue.rows import known_kinds
from storage.clock import now
from storage.jobs import LONGEST_LINE, OWNED, JobState, Line, Queue
from storage.tables import jobs, worker_of, workers

RECENT = 200
"""So many of the jobs that ended last tell how long one takes."""


class Lines(Part):
    """What the catalogue knows of those who wait."""

    def line(self, queue: Queue, *, fresh_s: float) -> Line:
        """Who waits in a queue; workers not seen for `fresh_s` seconds do not count."""
        with self._database.reading() as connection:
            able = _workers(connection, queue, fresh_s)
            return Line(
                queued=_queued(connection, queue),
                running=_running(connection, able),
                durations=_durations(connection, queue),
                workers=len(able),
            )


def _queued(connection: Connection, queue: Queue) -> tuple[tuple[str, str], ...]:
    here = (jobs.c.queue == queue, jobs.c.state == JobState.QUEUED)
    statement = select(jobs.c.id, jobs.c.kind).where(*here).order_by(jobs.c.id).limit(LONGEST_LINE)
    return tuple((job_id, kind) for job_id, kind in connection.execute(statement))


def _workers(connection: Connection, queue: Queue, fresh_s: float) -> set[str]:
    """The living that run a kind of this queue."""
    kinds = {kind.name for kind in known_kinds(connection) if kind.queue is queue}
    alive = connection.execute(select(workers).where(workers.c.last_seen > now() - fresh_s))
    return {worker.name for worker in map(worker_of, alive) if kinds.intersection(worker.kinds)}


def _running(connection: Connection, able: set[str]) -> tuple[tuple[str, float], ...]:
    statement = select(jobs.c.kind, now() - jobs.c.started_at).where(
        jobs.c.state.in_(OWNED), jobs.c.worker.in_(able)
    )
    return tuple((kind, float(seconds)) for kind, seconds in connection.execute(statement))


def _durations(connection: Connection, queue: Queue) -> dict[str | None, float]:
    here = (jobs.c.queue == queue, jobs.c.state == JobState.SUCCEEDED)
    statement = select(jobs.c.kind, jobs.c.ended_at - jobs.c.started_at).where(*here)
    took: defaultdict[str | None, list[float]] = defaultdict(list)
    for kind, seconds in connection.execute(statement.order_by(jobs.c.id.desc()).limit(RECENT)):
        took[kind].append(float(seconds))
        took[None].append(float(seconds))
    return {kind: fmean(seconds) for kind, seconds in took.items()}
