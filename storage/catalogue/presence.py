"""Workers, and the kinds of job that they announce."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from storage.catalogue.part import Part
from storage.catalogue.rows import known_kind, known_kinds
from storage.clock import now
from storage.jobs import OWNED, JobKind, WorkerRecord
from storage.tables import document_of, jobs, kinds, worker_of, workers


class Presences(Part):
    """What the catalogue knows of workers and kinds."""

    def announce(self, worker: str, announced: Sequence[JobKind], device: str) -> None:
        """Record a worker and the kinds that it runs; to be called at its start."""
        with self._database.writing() as connection:
            for kind in sorted(announced, key=lambda kind: (kind.name, kind.version)):
                document = document_of(kind)
                key = {"name": kind.name, "version": kind.version}
                self._database.upsert(connection, kinds, key, {"announced_at": now(), "document": document})
            record = {"device": device, "kinds": [kind.name for kind in announced], "last_seen": now()}
            self._database.upsert(connection, workers, {"name": worker}, record)

    def worker_seen(self, worker: str) -> None:
        """Record that an announced worker is alive."""
        with self._database.writing() as connection:
            connection.execute(update(workers).where(workers.c.name == worker).values(last_seen=now()))

    def workers(self) -> list[WorkerRecord]:
        """All workers that ever announced themselves, by name; `last_seen` tells the living."""
        with self._database.reading() as connection:
            return [worker_of(row) for row in connection.execute(select(workers).order_by(workers.c.name))]

    def idle_workers(self, kind: str, seen_within_s: float) -> list[str]:
        """Names of the workers that were seen so lately, can run such jobs, and run none."""
        busy = select(jobs.c.worker).where(jobs.c.state.in_(OWNED), jobs.c.worker.is_not(None))
        idle = select(workers).where(workers.c.last_seen > now() - seen_within_s, workers.c.name.not_in(busy))
        with self._database.reading() as connection:
            found = [worker_of(row) for row in connection.execute(idle.order_by(workers.c.name))]
        return [worker.name for worker in found if kind in worker.kinds]

    def kinds(self) -> list[JobKind]:
        """The newest version of each announced kind, by name."""
        with self._database.reading() as connection:
            return known_kinds(connection)

    def kind(self, name: str) -> JobKind:
        """The newest version of one kind. Raises UnknownKind."""
        with self._database.reading() as connection:
            return known_kind(connection, name)
