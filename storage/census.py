"""How many jobs, workers and volumes there are: what operators watch, by a few queries that indices bound.

Counts of what is open are exact and touch open jobs alone; what has ended is counted in an index; kinds,
attempts and codes of errors are told of the newest jobs, `NEWEST` at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from storage.clock import now
from storage.database import Database
from storage.jobs import OWNED, TERMINAL, JobState, Queue
from storage.migrations import VERSION_TABLE
from storage.tables import jobs, kinds, newest_kinds, volumes, worker_of, workers

NEWEST = 10_000
DAY_S = 86_400.0
OPEN = tuple(state for state in JobState if state not in TERMINAL)


@dataclass(frozen=True)
class Recent:
    """Jobs of one kind, state and error code (`""`: none) that were submitted within a day."""

    kind: str
    state: str
    code: str
    jobs: int
    attempts: int


@dataclass(frozen=True)
class Census:
    """The counts. `open` is by kind, queue and state, `ended` by queue and state; ages are in seconds;
    `workers` are those alive by the queue whose kinds they run; `volumes` is (how many, bytes as sent) by
    state.
    """

    open: Mapping[tuple[str, str, str], int]
    ended: Mapping[tuple[str, str], int]
    oldest_queued_s: Mapping[str, float]
    expired_leases: int
    recent: tuple[Recent, ...]
    workers: Mapping[str, int]
    volumes: Mapping[str, tuple[int, int]]


def take(database: Database, *, fresh_s: float) -> Census:
    """Count. A worker that was not seen for `fresh_s` seconds is gone. Raises CatalogueUnavailable."""
    with database.reading() as connection:
        return Census(
            open=_open(connection),
            ended=_ended(connection),
            oldest_queued_s=_oldest_queued(connection),
            expired_leases=_expired_leases(connection),
            recent=_recent(connection),
            workers=living_workers(connection, fresh_s),
            volumes=_volumes(connection),
        )


def alive(database: Database, *, fresh_s: float) -> dict[str, int]:
    """Living workers by the queue whose kinds they run; 0 for a queue of which a kind is known."""
    with database.reading() as connection:
        return living_workers(connection, fresh_s)


def schema_step(database: Database) -> str:
    """The step of the schema's history (storage/migrations) that a database stands at."""
    with database.reading() as connection:
        return str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one())


def living_workers(connection: Connection, fresh_s: float) -> dict[str, int]:
    """As `alive`, in a transaction that is open."""
    queue_of = {
        kind.name: str(kind.queue)
        for kind in newest_kinds(connection.execute(select(kinds.c.document)).scalars())
    }
    found = dict.fromkeys(sorted(set(queue_of.values())), 0)
    seen = select(workers).where(workers.c.last_seen > now() - fresh_s)
    for worker in map(worker_of, connection.execute(seen)):
        for queue in {queue_of[kind] for kind in worker.kinds if kind in queue_of}:
            found[queue] += 1
    return found


def _open(connection: Connection) -> dict[tuple[str, str, str], int]:
    counted = (
        select(jobs.c.kind, jobs.c.queue, jobs.c.state, func.count())
        .where(jobs.c.queue.in_(list(Queue)), jobs.c.state.in_(OPEN))
        .group_by(jobs.c.kind, jobs.c.queue, jobs.c.state)
    )
    return {(kind, queue, state): count for kind, queue, state, count in connection.execute(counted)}


def _ended(connection: Connection) -> dict[tuple[str, str], int]:
    counted = (
        select(jobs.c.queue, jobs.c.state, func.count())
        .where(jobs.c.queue.in_(list(Queue)), jobs.c.state.in_(TERMINAL))
        .group_by(jobs.c.queue, jobs.c.state)
    )
    return {(queue, state): count for queue, state, count in connection.execute(counted)}


def _oldest_queued(connection: Connection) -> dict[str, float]:
    """Ids are in the order of time: the first in the index is the oldest."""
    ages = {}
    for queue in Queue:
        first = (
            select(now() - jobs.c.created_at)
            .where(jobs.c.queue == queue, jobs.c.state == JobState.QUEUED)
            .order_by(jobs.c.id)
            .limit(1)
        )
        age = connection.execute(first).scalar()
        ages[str(queue)] = 0.0 if age is None else max(0.0, float(age))
    return ages


def _expired_leases(connection: Connection) -> int:
    expired = (jobs.c.state.in_(OWNED), jobs.c.lease_until < now())
    return int(connection.execute(select(func.count()).select_from(jobs).where(*expired)).scalar_one())


def _recent(connection: Connection) -> tuple[Recent, ...]:
    newest = (
        select(
            jobs.c.kind,
            jobs.c.state,
            jobs.c.attempt,
            jobs.c.created_at,
            jobs.c.error["code"].as_string().label("code"),
        )
        .order_by(jobs.c.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    told = func.coalesce(newest.c.code, "")
    counted = (
        select(newest.c.kind, newest.c.state, told, func.count(), func.sum(newest.c.attempt))
        .where(newest.c.created_at > now() - DAY_S)
        .group_by(newest.c.kind, newest.c.state, told)
    )
    return tuple(
        Recent(kind, state, code, count, int(attempts))
        for kind, state, code, count, attempts in connection.execute(counted)
    )


def _volumes(connection: Connection) -> dict[str, tuple[int, int]]:
    counted = select(volumes.c.state, func.count(), func.sum(volumes.c.source_bytes)).group_by(
        volumes.c.state
    )
    return {state: (count, int(size)) for state, count, size in connection.execute(counted)}
