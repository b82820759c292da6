"""The catalogue at one moment as a file, and back from there: every row of every table, on both databases."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from catalogue_examples import ERROR, announce, upload
from sqlalchemy import Connection, select

from storage.access import Access
from storage.audit import AuditLog
from storage.backup import back_up
from storage.catalogue import Catalogue
from storage.database import Database
from storage.jobs import Sender, Submission
from storage.recovery import restore
from storage.snapshot import NotEmpty, load, reading, snapshot
from storage.tables import metadata


def fill(catalogue: Catalogue) -> None:
    """Rows of many kinds, among them JSON, None and more than a page of jobs."""
    announce(catalogue, "measure")
    volume, ingest = upload(catalogue, "Scan ä")
    many = [
        Submission("measure", {"radius": number, "nested": {"none": None}}, volume.id)
        for number in range(600)
    ]
    catalogue.submit_all(many, Sender())
    catalogue.claim(ingest.id, "worker", 60)
    catalogue.fail(ingest.id, 1, ERROR)
    access, audit = Access(catalogue.database), AuditLog(catalogue.database)
    access.put_project("ward", name="Ward", max_bytes=1 << 40)
    access.make_key("key", project_id="ward")
    for number in range(3):
        audit.append(
            actor="key:0", action="read", subject=f"/{number}", outcome=200, request_id="r", project_id=None
        )


def rows(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
        for table in metadata.sorted_tables
    }


def test_a_snapshot_has_every_row_and_stays_as_it_is(catalogue: Catalogue, url: str, tmp_path: Path) -> None:
    fill(catalogue)
    with catalogue.database.reading() as connection:
        before = rows(connection)
    snapshot(url, tmp_path / "snapshot.db")
    catalogue.submit("measure", {})
    with reading(tmp_path / "snapshot.db") as connection:
        assert rows(connection) == before
    with pytest.raises(NotEmpty, match="name an empty one"):
        load(tmp_path / "snapshot.db", url)


def test_a_snapshot_is_brought_into_an_empty_database(url: str, tmp_path: Path) -> None:
    origin = f"sqlite:///{tmp_path / 'origin.db'}"
    with Catalogue.open(origin) as catalogue:
        fill(catalogue)
        with catalogue.database.reading() as connection:
            before = rows(connection)
    snapshot(origin, tmp_path / "snapshot.db")
    load(tmp_path / "snapshot.db", url)
    with closing(Database.open(url)) as database:
        with database.reading() as connection:
            assert rows(connection) == before
        assert AuditLog(database).verify() is None


def test_a_backup_of_either_database_is_restored_to_either(url: str, tmp_path: Path) -> None:
    with Catalogue.open(url) as catalogue:
        fill(catalogue)
    (tmp_path / "root").mkdir()
    back_up(url, tmp_path / "root", tmp_path / "copy")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    restore(tmp_path / "copy", tmp_path / "new", other)
    assert not list((tmp_path / "new").glob("catalogue.db*"))
    restore(tmp_path / "copy", tmp_path / "newer")
    for place in (other, f"sqlite:///{tmp_path / 'newer' / 'catalogue.db'}"):
        with Catalogue.open(place) as again:
            assert len(again.jobs(limit=1000)) == 601
            assert AuditLog(again.database).verify() is None
            again.submit("measure", {})
