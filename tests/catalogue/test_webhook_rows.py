"""The outbox of webhooks: whoever dies, whenever, and however many work on it, each end is noted once."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from catalogue_examples import ERROR, announce, queued, running
from sqlalchemy import select, update

from storage.access import Access
from storage.catalogue import Catalogue
from storage.changes import Glance
from storage.errors import MissingWebhook, QuotaExceeded
from storage.jobs import Sender, Submission
from storage.tables import deliveries, jobs
from storage.webhooks import MOST_WEBHOOKS, SAME_WEBHOOK, Webhook, WebhookEvent, Webhooks

URL = "https://ris.example/in"


def described(glance: Glance, event_id: str) -> dict[str, Any]:
    return {"id": event_id, "job": glance.id, "state": glance.state}


def subscribed(catalogue: Catalogue, **options: Any) -> Webhook:
    return Webhooks(catalogue.database).make(URL, list(WebhookEvent), **options).webhook


def noted(catalogue: Catalogue) -> list[dict[str, Any]]:
    """The documents of all deliveries."""
    with catalogue.database.reading() as connection:
        return list(connection.execute(select(deliveries.c.document)).scalars())


def ended(catalogue: Catalogue, count: int) -> list[str]:
    """Jobs that were cancelled before they began."""
    announce(catalogue)
    made = catalogue.submit_all([Submission("measure", {})] * count, Sender()).jobs
    for job in made:
        catalogue.request_cancel(job.id)
    return [job.id for job in made]


def test_ends_are_noted_for_those_who_asked(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    everything = hooks.make(URL, list(WebhookEvent)).webhook
    failures = hooks.make(URL, [WebhookEvent.JOB_FAILED]).webhook
    Access(catalogue.database).put_project("other")
    hooks.make(URL, list(WebhookEvent), project_id="other")
    good, bad, open_ = running(catalogue), running(catalogue), queued(catalogue)
    catalogue.finish(good.id, 1, {"answer": 42})
    catalogue.fail(bad.id, 1, ERROR)
    assert hooks.note_ended(described) == 2
    assert hooks.note_ended(described) == 0
    all_of = hooks.deliveries(everything.id, project_id="default")
    assert [(d.document["job"], d.document["state"]) for d in reversed(all_of)] == [
        (good.id, "succeeded"),
        (bad.id, "failed"),
    ]
    assert [d.document["job"] for d in hooks.deliveries(failures.id, project_id="default")] == [bad.id]
    assert len(noted(catalogue)) == 3
    assert {d.document["id"] for d in all_of} == {d.id for d in all_of}
    catalogue.request_cancel(open_.id)
    revision = catalogue.job(open_.id).revision
    assert hooks.note_ended(described) == 1
    assert catalogue.job(open_.id).revision == revision


def test_many_note_each_end_once(catalogue: Catalogue) -> None:
    subscribed(catalogue)
    ids = ended(catalogue, 60)
    hooks = Webhooks(catalogue.database)
    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(lambda _: hooks.note_ended(described, limit=7), range(40)))
    assert sum(counts) == 60
    assert Counter(document["job"] for document in noted(catalogue)) == Counter(ids)


def test_kill_9_before_the_commit_neither_loses_nor_doubles(catalogue: Catalogue, url: str) -> None:
    subscribed(catalogue)
    ids = ended(catalogue, 3)
    program = textwrap.dedent(
        f"""
        import os, signal
        from sqlalchemy import event
        from storage.database import Database
        from storage.webhooks import Webhooks

        database = Database.open({url!r})

        @event.listens_for(database._engine, "after_cursor_execute")
        def die(connection, cursor, statement, *rest):
            if statement.startswith("UPDATE jobs SET told"):
                os.kill(os.getpid(), signal.SIGKILL)

        Webhooks(database).note_ended(lambda glance, name: {{"job": glance.id}})
        """
    )
    child = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    assert noted(catalogue) == []
    hooks = Webhooks(catalogue.database)
    assert [hooks.note_ended(described), hooks.note_ended(described)] == [3, 0]
    assert Counter(document["job"] for document in noted(catalogue)) == Counter(ids)


def test_a_delivery_is_taken_by_one(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    made = [subscribed(catalogue) for _ in range(4)]
    ended(catalogue, SAME_WEBHOOK)
    hooks.note_ended(described)
    with ThreadPoolExecutor(6) as pool:
        taken = [p for got in pool.map(lambda _: hooks.take(limit=3, lease_s=60), range(12)) for p in got]
    while rest := hooks.take(limit=3, lease_s=60):
        taken += rest
    assert len(taken) == len({parcel.delivery.id for parcel in taken}) == 4 * SAME_WEBHOOK
    assert {parcel.delivery.webhook_id for parcel in taken} == {hook.id for hook in made}
    assert {parcel.url for parcel in taken} == {URL}
    assert len({parcel.secret for parcel in taken}) == 4


def test_one_webhook_does_not_take_all_places(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    slow = subscribed(catalogue)
    ended(catalogue, 3 * SAME_WEBHOOK)
    hooks.note_ended(described)
    quick = subscribed(catalogue)
    ended(catalogue, 1)
    hooks.note_ended(described)
    taken = hooks.take(limit=100, lease_s=60)
    of = Counter(parcel.delivery.webhook_id for parcel in taken)
    assert of == {slow.id: SAME_WEBHOOK, quick.id: 1}
    assert hooks.take(limit=100, lease_s=60, without=[slow.id]) == []
    assert len(hooks.take(limit=100, lease_s=60)) == SAME_WEBHOOK


def test_what_was_taken_and_not_told_of_is_due_again(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    hook = subscribed(catalogue)
    ended(catalogue, 1)
    hooks.note_ended(described)
    (first,) = hooks.take(limit=1, lease_s=-1)
    (second,) = hooks.take(limit=1, lease_s=60)
    assert (second.delivery.id, second.delivery.tries) == (first.delivery.id, 2)
    hooks.failed(first.delivery, "too late a word", status=500, pause_s=None)
    (present,) = hooks.deliveries(hook.id, project_id="default")
    assert (present.state, present.error) == ("pending", None)
    hooks.failed(second.delivery, "x" * 1000, status=503, pause_s=-1)
    (third,) = hooks.take(limit=1, lease_s=60)
    assert (third.delivery.tries, third.delivery.status, len(third.delivery.error or "")) == (3, 503, 300)
    hooks.delivered(third.delivery, 204)
    (present,) = hooks.deliveries(hook.id, project_id="default")
    assert (present.state, present.status, present.error, present.tries) == ("delivered", 204, None, 3)
    assert hooks.take(limit=1, lease_s=60) == []


def test_who_gives_up_is_not_asked_again(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    hook = subscribed(catalogue)
    hooks.put(hook.id, lambda name: {"id": name}, project_id="default")
    (parcel,) = hooks.take(limit=1, lease_s=60)
    hooks.failed(parcel.delivery, "gone", status=410, pause_s=None)
    assert hooks.deliveries(hook.id, project_id="default")[0].state == "failed"
    assert hooks.forget(older_than_s=60) == 0
    assert hooks.forget(older_than_s=-1) == 1
    assert noted(catalogue) == []


def test_webhooks_are_their_projects(catalogue: Catalogue) -> None:
    hooks = Webhooks(catalogue.database)
    Access(catalogue.database).put_project("other")
    mine, hers = subscribed(catalogue), subscribed(catalogue, project_id="other")
    assert hooks.webhooks("default") == [mine]
    assert hooks.webhooks("other") == [hers]
    for forbidden in (
        lambda: hooks.webhook(hers.id, project_id="default"),
        lambda: hooks.remove(hers.id, project_id="default"),
        lambda: hooks.deliveries(hers.id, project_id="default"),
        lambda: hooks.put(hers.id, lambda name: {}, project_id="default"),
    ):
        with pytest.raises(MissingWebhook, match=hers.id):
            forbidden()
    hooks.put(hers.id, lambda name: {"id": name}, project_id="other")
    hooks.remove(hers.id, project_id="other")
    assert noted(catalogue) == []
    assert hooks.take(limit=9, lease_s=60) == []


def test_a_project_has_so_many_webhooks_and_no_more(catalogue: Catalogue) -> None:
    for _ in range(MOST_WEBHOOKS):
        subscribed(catalogue)
    with pytest.raises(QuotaExceeded, match=str(MOST_WEBHOOKS)):
        subscribed(catalogue)


def test_what_had_ended_before_webhooks_were_known_is_not_told(catalogue: Catalogue) -> None:
    (job_id,) = ended(catalogue, 1)
    with catalogue.database.writing() as connection:  # as the schema's second step leaves older rows
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(told=1))
    subscribed(catalogue)
    assert Webhooks(catalogue.database).note_ended(described) == 0
