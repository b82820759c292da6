"""The schema's history, by Alembic: `versions/` holds one file for each step, `storage/tables.py` the end.

A new database is made as it is to be at once; an older one goes through the steps that it lacks, in one
transaction. To change the schema: change `storage/tables.py`, add a step, and set HEAD to it; a test compares
the two ways.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from storage.errors import CatalogueTooNew
from storage.tables import metadata

HEAD = "0002"
"""The step that `storage/tables.py` agrees with."""
FIRST = "0001"
"""The schema of databases from before steps were counted."""
SCHEMA_LOCK = 0x746F6D6F
"""Key of the PostgreSQL advisory lock under which the schema is changed."""
VERSION_TABLE = "alembic_version"


def migrate(engine: Engine) -> None:
    """Bring a database's schema up to date. Raises CatalogueTooNew where it is of a later release."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        present = inspect(connection).get_table_names()
        if not present:
            metadata.create_all(connection)
            _stamp(connection, HEAD)
        elif VERSION_TABLE not in present:
            _stamp(connection, FIRST)
            _upgrade(connection, FIRST)
        elif (found := _version(connection)) != HEAD:
            _upgrade(connection, found)


def version_of(engine: Engine) -> str:
    """The step that a database stands at."""
    with engine.connect() as connection:
        return _version(connection)


def _version(connection: Connection) -> str:
    return str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one())


def _stamp(connection: Connection, version: str) -> None:
    connection.execute(text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES (:version)"), {"version": version})


def _upgrade(connection: Connection, found: str) -> None:
    from alembic import command  # noqa: PLC0415 - slow to import, and needed once for each release
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    if found not in {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}:
        raise CatalogueTooNew(found, HEAD)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
