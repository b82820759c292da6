"""Jobs that are removed when their time is over, or when somebody asks for it; each leaves a tombstone.

A tombstone says that there was such a job, and whether its files have been removed too: who removes rows
removes files after that, and the next sweep does what was left undone.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, String, cast, delete, insert, or_, select, update

from storage.catalogue.part import Part
from storage.catalogue.rows import job_row
from storage.clock import now
from storage.errors import JobNotFinished
from storage.jobs import KEPT_ARTIFACT, TERMINAL
from storage.tables import jobs, requests, tombstones

AT_ONCE = 500


class Removals(Part):
    """How the catalogue forgets."""

    def remove_job(self, job_id: str) -> None:
        """Remove a job that has ended. Raises JobNotFinished, JobExpired or MissingJob.

        The caller removes its files, then calls `cleared`.
        """
        with self._database.writing() as connection:
            if not _bury(connection, jobs.c.id == job_id, jobs.c.state.in_(TERMINAL)):
                raise JobNotFinished(job_id, job_row(connection, job_id).state)

    def expire(self, kept_s: float) -> int:
        """Remove jobs that ended so long ago, `AT_ONCE` at most; how many.

        Jobs that made a model stay: predictions name them.
        """
        ended = [jobs.c.state.in_(TERMINAL), jobs.c.ended_at < now() - kept_s, _made_no_model()]
        oldest = select(jobs.c.id).where(*ended).order_by(jobs.c.ended_at).limit(AT_ONCE)
        with self._database.writing() as connection:
            chosen = connection.execute(oldest.with_for_update(skip_locked=True)).scalars().all()
            return _bury(connection, jobs.c.id.in_(chosen))

    def uncleared(self) -> list[str]:
        """Ids of removed jobs whose files may still be there, `AT_ONCE` at most."""
        statement = select(tombstones.c.id).where(tombstones.c.cleared == 0).limit(AT_ONCE)
        with self._database.reading() as connection:
            return list(connection.execute(statement).scalars())

    def cleared(self, job_ids: Collection[str]) -> None:
        """Record that the files of these removed jobs have been removed."""
        with self._database.writing() as connection:
            connection.execute(update(tombstones).where(tombstones.c.id.in_(job_ids)).values(cleared=1))

    def forget_requests(self, kept_s: float) -> int:
        """Forget the keys of requests that are so old; how many."""
        with self._database.writing() as connection:
            return connection.execute(delete(requests).where(requests.c.created_at < now() - kept_s)).rowcount


def _made_no_model() -> ColumnElement[bool]:
    named = cast(jobs.c.artifacts, String).contains(f'"{KEPT_ARTIFACT}"', autoescape=True)
    return or_(jobs.c.artifacts.is_(None), ~named)


def _bury(connection: Connection, *which: ColumnElement[bool]) -> int:
    """Remove jobs, and put up their tombstones; how many."""
    gone = connection.execute(delete(jobs).where(*which).returning(jobs.c.id, jobs.c.project_id)).all()
    if gone:
        stones = insert(tombstones).values(removed_at=now(), cleared=0)
        connection.execute(stones, [{"id": row.id, "project_id": row.project_id} for row in gone])
    return len(gone)
