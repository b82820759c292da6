"""The one truth about volumes, jobs, kinds and workers: SQLAlchemy Core over SQLite or PostgreSQL.

Every change of a job is one compare-and-set on its state, and on its attempt where a worker speaks, so
that lost, doubled and late messages do no harm: those statements stand in storage/transitions.py. Any
method raises CatalogueUnavailable while the database does not answer, StorageFull while its disk is full.
"""

from __future__ import annotations

from types import TracebackType

from storage.catalogue.attempts import RETRY_PAUSE_S, Attempts
from storage.catalogue.lines import Lines
from storage.catalogue.presence import Presences
from storage.catalogue.removals import Removals
from storage.catalogue.rows import INGEST, MAX_ATTEMPTS
from storage.catalogue.submissions import Submissions
from storage.catalogue.volumes import VolumeRows
from storage.database import Database

__all__ = ["INGEST", "MAX_ATTEMPTS", "RETRY_PAUSE_S", "Catalogue"]


class Catalogue(VolumeRows, Presences, Submissions, Attempts, Lines, Removals):
    """Volumes, kinds, workers and jobs. Safe for threads; open it anew in every process, after a fork."""

    @classmethod
    def open(cls, url: str) -> Catalogue:
        """The catalogue at a SQLAlchemy URL; its schema is brought up to date."""
        return cls(Database.open(url))

    @property
    def database(self) -> Database:
        """Where it is kept, beside the other things that the service knows."""
        return self._database

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ping(self) -> None:
        """Ask the database for an answer."""
        self._database.ping()
