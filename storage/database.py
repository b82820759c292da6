"""How the catalogue's database is opened: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.errors import CatalogueUnavailable, StorageFull
from storage.tables import metadata

BUSY_TIMEOUT_MS = 30_000
SCHEMA_LOCK = 0x746F6D6F
"""Key of the PostgreSQL advisory lock under which tables are made."""
DISK_FULL = frozenset({"SQLITE_FULL", "53100"})
"""SQLite's error name and PostgreSQL's SQLSTATE for a disk that is full."""


def open_engine(url: str) -> Engine:
    """An engine for `sqlite:///path` or `postgresql+psycopg://...`, its tables made where they are missing.

    Several processes may open the same database at the same time. JSON columns refuse NaN and infinity.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        address,
        json_serializer=partial(json.dumps, allow_nan=False),
        pool_pre_ping=address.get_backend_name() != "sqlite",
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    with translated(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        metadata.create_all(connection)
    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's own trouble into CatalogueUnavailable or StorageFull."""
    try:
        yield
    except PoolTimeout as error:
        raise CatalogueUnavailable from error
    except OperationalError as error:
        if _cause(error) in DISK_FULL:
            raise StorageFull("the disk of the catalogue's database is full") from error
        raise CatalogueUnavailable from error


def _cause(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None)


def _configure_sqlite(connection: Any, record: Any) -> None:
    """Leave transactions to `_begin_sqlite`; wait for locks rather than fail."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _enter_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # a 202 outlasts a power cut


def _enter_wal(connection: Any) -> None:
    """Switch to WAL mode; a no-op once the file is in it.

    Where several processes switch a new file at the same time, SQLite refuses some of them at once,
    whatever the busy timeout: these try again.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Writers queue up at once, since SQLite cannot upgrade a reader's lock without a chance of deadlock."""
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
