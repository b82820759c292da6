"""The catalogue at one moment, as a SQLite file, whichever database it is kept in; and back from there.

SQLite's own online backup copies a catalogue that is in use; rows of a PostgreSQL are read in one
REPEATABLE READ transaction. Neither holds up a writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, delete, func, insert, make_url, select

from storage.database import DISK_FULL, Database, translated
from storage.errors import CatalogueUnavailable, StorageFull
from storage.tables import access_keys, jobs, metadata, projects, volumes

PAGE = 500


class NotEmpty(Exception):
    """A database that rows were to be loaded into has rows of its own."""


def snapshot(url: str, path: Path) -> None:
    """Write the catalogue at a SQLAlchemy URL, as it is now, to a new file, in this release's schema.

    Raises CatalogueUnavailable, or StorageFull where the disk is full.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        _copy_file(str(address.database), path)
        Database.open(f"sqlite:///{path}").close()
    else:
        _copy_server(address, path)
    _as_one_file(path)


def load(path: Path, url: str) -> None:
    """Bring the rows of a snapshot of this release's schema into an empty database. Raises NotEmpty."""
    with closing(Database.open(url)) as database, reading(path) as source, database.writing() as target:
        for table in (access_keys, jobs, volumes):
            if target.execute(select(func.count()).select_from(table)).scalar_one():
                raise NotEmpty(f"the catalogue's database has {table.name} already; name an empty one")
        _copy_rows(source, target)


@contextmanager
def reading(path: Path) -> Iterator[Connection]:
    """The rows of a snapshot, which nobody else changes."""
    engine = _engine(path)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _engine(path: Path) -> Engine:
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    )


def _copy_file(database: str, path: Path) -> None:
    source_uri = f"{Path(database).absolute().as_uri()}?mode=ro"
    try:
        with (
            closing(sqlite3.connect(source_uri, uri=True)) as source,
            closing(sqlite3.connect(path)) as target,
        ):
            source.backup(target)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname in DISK_FULL:
            raise StorageFull("the disk is full") from error
        raise CatalogueUnavailable from error


def _copy_server(address: URL, path: Path) -> None:
    with closing(Database.open(f"sqlite:///{path}")) as copy, translated():
        engine = create_engine(address, isolation_level="REPEATABLE READ")
        try:
            with engine.connect() as source, copy.writing() as target:
                _copy_rows(source, target)
        finally:
            engine.dispose()


def _as_one_file(path: Path) -> None:
    """Leave WAL mode: a file that nobody writes to needs no second one beside it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _copy_rows(source: Connection, target: Connection) -> None:
    target.execute(delete(projects))
    for table in metadata.sorted_tables:
        rows = source.execution_options(yield_per=PAGE).execute(select(table))
        for page in rows.mappings().partitions(PAGE):
            target.execute(insert(table), [dict(row) for row in page])
