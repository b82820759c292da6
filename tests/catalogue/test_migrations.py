"""The schema's history: an older database becomes what a new one is, with all that it held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from storage import migrations
from storage.catalogue import Catalogue
from storage.errors import CatalogueTooNew, CatalogueUnavailable
from storage.jobs import JobState
from storage.migrations import HEAD, VERSION_TABLE, version_of
from storage.migrations.versions import r0001_first
from storage.records import VolumeState
from storage.tables import metadata


def old_database(url: str) -> None:
    """One from before steps were counted, with a volume, a job that waits and one that has ended."""
    engine = create_engine(url)
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        r0001_first.upgrade()
        connection.execute(
            text(
                "INSERT INTO volumes (id, name, state, created_at, source_bytes, source_sha256, ingest_job, "
                "revision) VALUES ('vol_1', 'scan', 'validating', 1.0, 3, 'ab', 'job_1', 0)"
            )
        )
        for job, state in (("job_1", "queued"), ("job_2", "succeeded")):
            connection.execute(
                text(
                    "INSERT INTO jobs (id, kind, state, attempt, max_attempts, parameters, volume_id, queue, "
                    "created_at, revision, rings, rung_at) "
                    f"VALUES ('{job}', 'ingest', '{state}', 0, 3, '{{}}', 'vol_1', 'interactive', 1, 0, 0, 1)"
                )
            )
    engine.dispose()


def differences(url: str) -> list[object]:
    """Between a database and `storage/tables.py`."""
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, parents: kind != "table" or name != VERSION_TABLE,
            },
        )
        found = list(compare_metadata(context, metadata))
    engine.dispose()
    return found


def test_head_is_the_last_step() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_new_database_is_at_the_head(url: str) -> None:
    Catalogue.open(url).close()
    assert differences(url) == []
    engine = create_engine(url)
    assert version_of(engine) == HEAD
    engine.dispose()


def test_an_old_database_becomes_what_a_new_one_is(url: str) -> None:
    old_database(url)
    assert differences(url) != []
    with Catalogue.open(url) as catalogue:
        assert catalogue.volume("vol_1", project_id="default").state is VolumeState.VALIDATING
        job = catalogue.job("job_1", project_id="default")
        assert job.state is JobState.QUEUED
        assert catalogue.claim("job_1", "worker", 60) is not None
        assert catalogue.job("job_2").state is JobState.SUCCEEDED
    assert differences(url) == []
    Catalogue.open(url).close()


def test_a_database_of_a_later_release_is_left_alone(url: str) -> None:
    Catalogue.open(url).close()
    engine = create_engine(url)
    change(engine, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(CatalogueTooNew, match="9999"):
        Catalogue.open(url)
    assert version_of(engine) == "9999"
    engine.dispose()


def test_a_step_that_fails_leaves_everything_as_it_was(url: str) -> None:
    old_database(url)
    engine = create_engine(url)
    change(engine, "CREATE TABLE webhooks (id INTEGER)")  # in the way of the step's own
    with pytest.raises((CatalogueUnavailable, SQLAlchemyError)):
        Catalogue.open(url)
    change(engine, "DROP TABLE webhooks")
    engine.dispose()
    Catalogue.open(url).close()
    assert differences(url) == []


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalogue.db'}"
    old_database(url)
    program = f"from storage.catalogue import Catalogue; Catalogue.open({url!r}).ping()"
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert differences(url) == []


def change(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))
