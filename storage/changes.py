"""Jobs as those see them who watch: briefly, and in the order in which they changed.

Every change of a job's revision carries the time of the database's clock. `Changes.since` hands changes out
in the order of (time, id), up to a horizon below which no open transaction can write any more: whoever has
seen one has seen all before it. Of a job that changed more than once only the last change is there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, select, text, tuple_

from storage.clock import now
from storage.database import Database
from storage.jobs import JobState, Progress
from storage.tables import jobs

CLOCK_STEP_S = 0.01
"""More than the coarsest clock's step: two transactions one after the other may bear the same time."""
LONGEST_TRANSACTION_S = 30.0
"""A transaction that stays open for longer holds nobody up; what it changed may be missed."""
MOST_IDS = 1000


class Cursor(NamedTuple):
    """A place in the order of changes: behind this one."""

    at: float
    job_id: str


@dataclass(frozen=True)
class Glance:
    """A job without parameters, result, labels and an error's words: nothing here names a patient.

    Times are seconds since 1970 (UTC).
    """

    id: str
    project_id: str
    kind: str
    state: JobState
    attempt: int
    revision: int
    volume_id: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    progress: Progress | None
    error_code: str | None
    changed_at: float

    @property
    def cursor(self) -> Cursor:
        """Where in the order of changes this one is."""
        return Cursor(self.changed_at, self.id)


GLANCES: Select[Any] = select(
    jobs.c.id,
    jobs.c.project_id,
    jobs.c.kind,
    jobs.c.state,
    jobs.c.attempt,
    jobs.c.revision,
    jobs.c.volume_id,
    jobs.c.created_at,
    jobs.c.started_at,
    jobs.c.ended_at,
    jobs.c.progress,
    jobs.c.error["code"].as_string().label("error_code"),
    jobs.c.changed_at,
)


class Changes:
    """What has become of jobs. Raises CatalogueUnavailable while the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def glances(self, job_ids: Collection[str]) -> list[Glance]:
        """The jobs with these ids, in no order; those that are not there are left out."""
        wanted = list(job_ids)
        parts = [wanted[start : start + MOST_IDS] for start in range(0, len(wanted), MOST_IDS)]
        with self._database.reading() as connection:
            return [
                glance_of(row)
                for part in parts
                for row in connection.execute(GLANCES.where(jobs.c.id.in_(part)))
            ]

    def last(self) -> Cursor:
        """Behind the last change below the horizon."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(jobs.c.changed_at, jobs.c.id)
                .where(jobs.c.changed_at <= self._horizon(connection))
                .order_by(jobs.c.changed_at.desc(), jobs.c.id.desc())
                .limit(1)
            ).first()
        return Cursor(0.0, "") if row is None else Cursor(row.changed_at, row.id)

    def since(self, cursor: Cursor, *, project_id: str | None = None, limit: int) -> list[Glance]:
        """The next changes behind a cursor, of a project or of all, oldest first."""
        place = tuple_(jobs.c.changed_at, jobs.c.id)
        with self._database.reading() as connection:
            statement = (
                GLANCES.where(place > tuple_(*cursor), jobs.c.changed_at <= self._horizon(connection))
                .order_by(jobs.c.changed_at, jobs.c.id)
                .limit(limit)
            )
            if project_id is not None:
                statement = statement.where(jobs.c.project_id == project_id)
            return [glance_of(row) for row in connection.execute(statement)]

    def _horizon(self, connection: Connection) -> float:
        """The time before which everything has been written.

        SQLite has one writer at a time, so that times only grow. PostgreSQL has many: those that have
        begun to write, and not ended, bear times after their beginning.
        """
        present = float(connection.execute(select(now())).scalar_one())
        if self._database.dialect == "postgresql":
            begun = connection.execute(_OLDEST_WRITER).scalar_one()
            present = min(present, max(begun or present, present - LONGEST_TRANSACTION_S))
        return present - CLOCK_STEP_S


_OLDEST_WRITER = text(
    "SELECT CAST(extract(epoch FROM min(xact_start)) AS double precision) FROM pg_stat_activity "
    "WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
)


def glance_of(row: Row[Any]) -> Glance:
    """The glance in a row of `GLANCES`."""
    progress = None if row.progress is None else Progress(**row.progress)
    return Glance(**{**row._mapping, "state": JobState(row.state), "progress": progress})
