"""The catalogue's database, SQLite in WAL mode or PostgreSQL, and its transactions."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, literal, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.errors import CatalogueUnavailable, StorageFull
from storage.migrations import migrate

BUSY_TIMEOUT_MS = 30_000
DISK_FULL = frozenset({"SQLITE_FULL", "53100"})
"""SQLite's error name and PostgreSQL's SQLSTATE for a disk that is full."""


class Database:
    """Safe for threads; open it anew in every process, after a fork.

    Any use raises CatalogueUnavailable while the database does not answer, StorageFull while its disk is
    full.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(reading=True)

    @classmethod
    def open(cls, url: str) -> Database:
        """The database at `sqlite:///path` or `postgresql+psycopg://...`, its schema brought up to date.

        Several processes may open the same database at the same time. JSON columns refuse NaN and infinity.
        Raises CatalogueTooNew for one that a newer release has changed.
        """
        engine = _engine(url)
        try:
            with translated():
                migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Ask for an answer."""
        with self.reading() as connection:
            connection.execute(select(literal(1)))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with translated(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: all of it, or nothing."""
        with translated(), self._engine.begin() as connection:
            yield connection

    def insert_new(
        self, connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]
    ) -> bool:
        """Insert a row, unless there is one with this key; whether it was inserted.

        Waits for another transaction that is inserting it.
        """
        dialect = sqlite if self.dialect == "sqlite" else postgresql
        statement = dialect.insert(table).values(**key, **values).on_conflict_do_nothing()
        column = table.c[next(iter(key))]
        return connection.execute(statement.returning(column)).first() is not None

    def upsert(
        self, connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        """Insert a row, or change the one with this key."""
        dialect = sqlite if self.dialect == "sqlite" else postgresql
        connection.execute(
            dialect.insert(table)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=list(key), set_=dict(values))
        )


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


def _engine(url: str) -> Engine:
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        address,
        json_serializer=partial(json.dumps, allow_nan=False),
        hide_parameters=True,  # a traceback in a log must not tell what a row holds
        pool_pre_ping=address.get_backend_name() != "sqlite",
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


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
