"""The audit log: who did what to what, and what came of it; append-only, each record bound to the last.

A record's hash is SHA-256 over the hash before it and the record itself as canonical JSON, so that none can
be changed, removed or put in between without every later hash telling. What is cut off at the end is seen by
whoever has kept a later hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, text

from storage.clock import now
from storage.database import Database
from storage.tables import audit

CHAIN_LOCK = 0x746F6D61
"""Key of the PostgreSQL advisory lock under which records are appended."""
BEGINNING = "0" * 64
PAGE = 1000


@dataclass(frozen=True)
class AuditRecord:
    """One action. `at` is in seconds since 1970 (UTC), `outcome` an HTTP status; `project_id` is None where
    nobody was recognised.
    """

    sequence: int
    at: float
    project_id: str | None
    actor: str
    action: str
    subject: str
    outcome: int
    request_id: str
    hash: str

    def hash_after(self, before: str) -> str:
        """What this record's hash is, where `before` is the hash of the record before."""
        facts = {name: value for name, value in asdict(self).items() if name != "hash"}
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{before}{text}".encode()).hexdigest()


@dataclass(frozen=True)
class Broken:
    """The first record that does not follow from the one before."""

    sequence: int
    reason: str


class AuditLog:
    """Append, read, verify. Raises CatalogueUnavailable or StorageFull where the database takes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self, *, actor: str, action: str, subject: str, outcome: int, request_id: str, project_id: str | None
    ) -> AuditRecord:
        """Add a record behind the last."""
        with self._database.writing() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CHAIN_LOCK})
            last = connection.execute(
                select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1)
            ).first()
            sequence, before = (1, BEGINNING) if last is None else (last.sequence + 1, last.hash)
            at = round(float(connection.execute(select(now())).scalar_one()), 3)
            blank = AuditRecord(
                sequence, at, project_id, actor[:200], action[:100], subject[:200], outcome, request_id, ""
            )
            record = AuditRecord(**{**asdict(blank), "hash": blank.hash_after(before)})
            connection.execute(insert(audit).values(**asdict(record)))
        return record

    def records(
        self, *, project_id: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[AuditRecord]:
        """The newest records, of a project or of all; or those before one of them."""
        statement = select(audit).order_by(audit.c.sequence.desc()).limit(limit)
        if project_id is not None:
            statement = statement.where(audit.c.project_id == project_id)
        if before is not None:
            statement = statement.where(audit.c.sequence < before)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(statement)]

    def everything(self) -> Iterator[AuditRecord]:
        """Every record, oldest first."""
        with self._database.reading() as connection:
            yield from _all(connection)

    def verify(self) -> Broken | None:
        """The first break of the chain, None where it is whole."""
        before, expected = BEGINNING, 1
        with self._database.reading() as connection:
            for record in _all(connection):
                if record.sequence != expected:
                    return Broken(expected, "is missing")
                if record.hash != record.hash_after(before):
                    return Broken(record.sequence, "was changed, or does not follow the one before")
                before, expected = record.hash, expected + 1
        return None


def _all(connection: Connection) -> Iterator[AuditRecord]:
    """Every record, oldest first, a page in memory."""
    last = 0
    while True:
        rows = connection.execute(
            select(audit).where(audit.c.sequence > last).order_by(audit.c.sequence).limit(PAGE)
        ).all()
        yield from map(_record, rows)
        if len(rows) < PAGE:
            return
        last = rows[-1].sequence


def _record(row: Row[Any]) -> AuditRecord:
    return AuditRecord(**row._mapping)
