"""The order of changes: whoever has seen one has seen all before it."""

from __future__ import annotations

import time

import pytest
from catalogue_examples import ERROR, announce, queued, running
from sqlalchemy import update

from storage.catalogue import Catalogue
from storage.changes import Changes, Cursor, Glance
from storage.clock import now
from storage.jobs import JobState, Progress, Sender, Submission
from storage.tables import jobs

BEGINNING = Cursor(0.0, "")


def settled(catalogue: Catalogue) -> Changes:
    """Changes, after the clock has gone on."""
    time.sleep(0.03)
    return Changes(catalogue.database)


def test_a_glance_shows_where_a_job_stands_and_no_more(catalogue: Catalogue) -> None:
    job = running(catalogue)
    catalogue.heartbeat(job.id, 1, 30, Progress("fit", 2, None, "cubes"))
    (glance,) = settled(catalogue).glances([job.id, "job_0"])
    assert (glance.state, glance.progress) == (JobState.RUNNING, Progress("fit", 2, None, "cubes"))
    assert (glance.revision, glance.error_code) == (catalogue.job(job.id).revision, None)
    catalogue.fail(job.id, 1, {**ERROR, "detail": "DOE^JOHN"})
    (glance,) = settled(catalogue).glances([job.id])
    assert glance.error_code == ERROR["code"]
    assert "DOE" not in repr(glance)


def test_of_each_job_the_last_change_is_there_in_order(catalogue: Catalogue) -> None:
    first, second = queued(catalogue), queued(catalogue)
    assert ids(settled(catalogue).since(BEGINNING, limit=9)) == [first.id, second.id]
    catalogue.claim(first.id, "worker", 30)
    changes = settled(catalogue)
    found = changes.since(BEGINNING, limit=9)
    assert ids(found) == [second.id, first.id]
    assert changes.last() == found[-1].cursor
    assert ids(changes.since(found[0].cursor, limit=9)) == [first.id]
    assert changes.since(found[-1].cursor, limit=9) == []
    assert ids(changes.since(BEGINNING, limit=1)) == [second.id]
    assert changes.since(BEGINNING, project_id="other", limit=9) == []


def test_a_renewed_lease_is_no_change_and_progress_is(catalogue: Catalogue) -> None:
    job = running(catalogue)
    changes = settled(catalogue)
    place = changes.last()
    catalogue.heartbeat(job.id, 1, 30, None)
    catalogue.rang([job.id])
    assert settled(catalogue).since(place, limit=9) == []
    catalogue.heartbeat(job.id, 1, 30, Progress("fit"))
    assert ids(settled(catalogue).since(place, limit=9)) == [job.id]


def test_changes_of_one_moment_are_told_apart(catalogue: Catalogue) -> None:
    announce(catalogue)
    catalogue.submit_all([Submission("measure", {})] * 5, Sender())
    with catalogue.database.writing() as connection:
        connection.execute(update(jobs).values(changed_at=1.0))
    changes, seen, place = settled(catalogue), [], BEGINNING
    while page := changes.since(place, limit=2):
        seen += ids(page)
        place = page[-1].cursor
    assert len(seen) == len(set(seen)) == 5


def test_a_transaction_that_is_open_holds_later_changes_back(catalogue: Catalogue) -> None:
    """What it wrote bears an earlier time than what others have written and published since."""
    if catalogue.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    slow, quick = queued(catalogue), queued(catalogue)
    changes = settled(catalogue)
    place = changes.last()
    with catalogue.database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == slow.id).values(changed_at=now()))
        time.sleep(0.02)
        catalogue.request_cancel(quick.id)
        time.sleep(0.03)
        assert changes.since(place, limit=9) == []
        assert changes.last() <= place
    assert ids(settled(catalogue).since(place, limit=9)) == [slow.id, quick.id]


def ids(glances: list[Glance]) -> list[str]:
    return [glance.id for glance in glances]
