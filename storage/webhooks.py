"""Webhooks: who is to be told when jobs end, and the outbox of what they are to be told.

A job's end is noted once: its deliveries and its mark `told` are written in one transaction, so that whoever
dies at any moment neither loses nor doubles one. A delivery is tried by whoever has moved its next try into
the future, at least once, always under the same id.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from storage.changes import GLANCES, Glance, glance_of
from storage.clock import now
from storage.database import Database
from storage.errors import MissingWebhook, QuotaExceeded
from storage.ids import new_id
from storage.jobs import TERMINAL
from storage.tables import DEFAULT_PROJECT, deliveries, jobs, projects, webhooks

MOST_WEBHOOKS = 20
"""Of a project."""
MOST_NOTED = 200
SAME_WEBHOOK = 4
"""So many deliveries of one webhook are tried at a time: a slow receiver is to hold up only itself."""


class WebhookEvent(StrEnum):
    """What a webhook may be told of: the ends of jobs."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"


Describe = Callable[[Glance, str], dict[str, Any]]
"""What is sent of a job that has ended, by the id of the delivery."""


@dataclass(frozen=True)
class Webhook:
    """Where to tell of which events. `created_at` is in seconds since 1970 (UTC)."""

    id: str
    project_id: str
    url: str
    events: tuple[WebhookEvent, ...]
    created_at: float


@dataclass(frozen=True)
class MadeWebhook:
    """A webhook with its secret, `whsec_` and base64 (Standard Webhooks), as it is shown once."""

    webhook: Webhook
    secret: str


@dataclass(frozen=True)
class Delivery:
    """One event for one webhook. `next_at` is None when it will not be tried again; `status` is that of the
    last answer, None where there was none; `error` says what was wrong with the last try.
    """

    id: str
    webhook_id: str
    document: dict[str, Any]
    created_at: float
    next_at: float | None
    tries: int
    tried_at: float | None
    status: int | None
    error: str | None

    @property
    def state(self) -> str:
        """`pending`, `delivered` or `failed`."""
        if self.next_at is not None:
            return "pending"
        return "delivered" if self.error is None else "failed"


@dataclass(frozen=True)
class Parcel:
    """A delivery that the holder is to try now, with where it goes and what it is signed with."""

    delivery: Delivery
    url: str
    secret: str


class Webhooks:
    """Subscriptions and their outbox. Raises CatalogueUnavailable while the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Subscriptions

    def make(
        self, url: str, events: Collection[WebhookEvent], *, project_id: str = DEFAULT_PROJECT
    ) -> MadeWebhook:
        """A new webhook of a project. Raises QuotaExceeded."""
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        with self._database.writing() as connection:
            connection.execute(select(projects.c.id).where(projects.c.id == project_id).with_for_update())
            mine = select(func.count()).where(webhooks.c.project_id == project_id)
            present = connection.execute(mine).scalar_one()
            if present >= MOST_WEBHOOKS:
                raise QuotaExceeded("webhooks", present, 1, MOST_WEBHOOKS, "remove one that is not needed")
            row = connection.execute(
                insert(webhooks)
                .values(
                    id=new_id("whk"),
                    project_id=project_id,
                    url=url,
                    secret=secret,
                    events=sorted(set(events)),
                    created_at=now(),
                )
                .returning(webhooks)
            ).one()
        return MadeWebhook(_webhook(row), secret)

    def webhooks(self, project_id: str) -> list[Webhook]:
        """A project's webhooks, oldest first."""
        chosen = select(webhooks).where(webhooks.c.project_id == project_id).order_by(webhooks.c.id)
        with self._database.reading() as connection:
            return [_webhook(row) for row in connection.execute(chosen)]

    def webhook(self, webhook_id: str, *, project_id: str) -> Webhook:
        """One webhook. Raises MissingWebhook, also for another project's."""
        with self._database.reading() as connection:
            return _found(connection, webhook_id, project_id)

    def remove(self, webhook_id: str, *, project_id: str) -> None:
        """Remove a webhook and all its deliveries. Raises MissingWebhook."""
        with self._database.writing() as connection:
            _found(connection, webhook_id, project_id)
            connection.execute(delete(deliveries).where(deliveries.c.webhook_id == webhook_id))
            connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    def deliveries(
        self, webhook_id: str, *, project_id: str, limit: int = 50, before: str | None = None
    ) -> list[Delivery]:
        """The newest deliveries of a webhook, or those before one. Raises MissingWebhook."""
        chosen = select(deliveries).where(deliveries.c.webhook_id == webhook_id)
        if before is not None:
            chosen = chosen.where(deliveries.c.id < before)
        with self._database.reading() as connection:
            _found(connection, webhook_id, project_id)
            rows = connection.execute(chosen.order_by(deliveries.c.id.desc()).limit(limit))
            return [_delivery(row) for row in rows]

    # The outbox

    def put(self, webhook_id: str, describe: Callable[[str], dict[str, Any]], *, project_id: str) -> Delivery:
        """A delivery for one webhook, to be tried at once. Raises MissingWebhook."""
        delivery_id = new_id("dlv")
        with self._database.writing() as connection:
            _found(connection, webhook_id, project_id)
            values = _blank(connection, delivery_id, webhook_id, describe(delivery_id))
            row = connection.execute(insert(deliveries).values(**values).returning(deliveries)).one()
        return _delivery(row)

    def note_ended(self, describe: Describe, *, limit: int = MOST_NOTED) -> int:
        """Put deliveries for jobs that have ended and of which nobody was told; how many jobs that were.

        Any number of processes may do so: each job is noted by one of them, in one transaction.
        """
        untold = (jobs.c.told == 0, jobs.c.state.in_(TERMINAL))
        with self._database.reading() as connection:
            if connection.execute(select(jobs.c.id).where(*untold).limit(1)).first() is None:
                return 0
        with self._database.writing() as connection:
            chosen = select(jobs.c.id).where(*untold).limit(limit).with_for_update(skip_locked=True)
            ids = list(connection.execute(chosen).scalars())
            ended = [glance_of(row) for row in connection.execute(GLANCES.where(jobs.c.id.in_(ids)))]
            if values := _announcements(connection, ended, describe):
                connection.execute(insert(deliveries), values)
            connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(told=1))
        return len(ids)

    def take(self, *, limit: int, lease_s: float, without: Collection[str] = ()) -> list[Parcel]:
        """Deliveries to be tried now, by the caller alone: others wait for `lease_s` before they try them.

        Those of the webhooks `without` are left, and of each other one a few are taken.
        """
        due = (deliveries.c.next_at <= now(), deliveries.c.webhook_id.not_in(without))
        with self._database.reading() as connection:
            if connection.execute(select(deliveries.c.id).where(*due).limit(1)).first() is None:
                return []
        with self._database.writing() as connection:
            ids = list(connection.execute(_fair(due, limit)).scalars())
            taken = (
                update(deliveries)
                .where(deliveries.c.id.in_(ids), deliveries.c.next_at <= now())
                .values(next_at=now() + lease_s, tries=deliveries.c.tries + 1, tried_at=now())
                .returning(deliveries)
            )
            found = [_delivery(row) for row in connection.execute(taken)]
            wanted = {delivery.webhook_id for delivery in found}
            rows = connection.execute(select(webhooks).where(webhooks.c.id.in_(wanted)))
            hooks = {row.id: row for row in rows}
        return [
            Parcel(delivery, hooks[delivery.webhook_id].url, hooks[delivery.webhook_id].secret)
            for delivery in sorted(found, key=lambda delivery: delivery.id)
            if delivery.webhook_id in hooks
        ]

    def delivered(self, delivery: Delivery, status: int) -> None:
        """Record that the receiver has taken it."""
        self._close(delivery, next_at=None, status=status, error=None)

    def failed(self, delivery: Delivery, error: str, *, status: int | None, pause_s: float | None) -> None:
        """Record that a try came to nothing; the next is after `pause_s`, or there is none."""
        after = None if pause_s is None else now() + pause_s
        self._close(delivery, next_at=after, status=status, error=error[:300])

    def forget(self, *, older_than_s: float) -> int:
        """Remove deliveries that are over and this old; how many they were."""
        old = (deliveries.c.next_at.is_(None), deliveries.c.created_at < now() - older_than_s)
        with self._database.writing() as connection:
            return connection.execute(delete(deliveries).where(*old)).rowcount

    def _close(self, delivery: Delivery, **values: Any) -> None:
        """Record what came of a try, unless another has begun since."""
        this_try = (deliveries.c.id == delivery.id, deliveries.c.tries == delivery.tries)
        with self._database.writing() as connection:
            connection.execute(update(deliveries).where(*this_try).values(**values))


def _fair(due: Collection[ColumnElement[bool]], limit: int) -> Any:
    """The ids of due deliveries that nobody else is taking, longest due first, few of each webhook."""
    rank = func.row_number().over(partition_by=deliveries.c.webhook_id, order_by=deliveries.c.next_at)
    ranked = select(deliveries.c.id, deliveries.c.next_at, rank.label("rank")).where(*due).subquery()
    few = select(ranked.c.id).where(ranked.c.rank <= SAME_WEBHOOK).order_by(ranked.c.next_at).limit(limit)
    return select(deliveries.c.id).where(deliveries.c.id.in_(few), *due).with_for_update(skip_locked=True)


def _announcements(
    connection: Connection, ended: Collection[Glance], describe: Describe
) -> list[dict[str, Any]]:
    """New deliveries of jobs' ends, for those who asked for them."""
    concerned = webhooks.c.project_id.in_({glance.project_id for glance in ended})
    hooks = [_webhook(row) for row in connection.execute(select(webhooks).where(concerned))]
    wanted = [
        (hook, glance, new_id("dlv"))
        for glance in sorted(ended, key=lambda glance: glance.ended_at or 0.0)
        for hook in hooks
        if hook.project_id == glance.project_id and f"job.{glance.state}" in hook.events
    ]
    return [_blank(connection, name, hook.id, describe(glance, name)) for hook, glance, name in wanted]


def _blank(
    connection: Connection, delivery_id: str, webhook_id: str, document: dict[str, Any]
) -> dict[str, Any]:
    present = connection.execute(select(now())).scalar_one()
    return {
        "id": delivery_id,
        "webhook_id": webhook_id,
        "document": document,
        "created_at": present,
        "next_at": present,
    }


def _found(connection: Connection, webhook_id: str, project_id: str) -> Webhook:
    row = connection.execute(select(webhooks).where(webhooks.c.id == webhook_id)).first()
    if row is None or row.project_id != project_id:
        raise MissingWebhook(webhook_id)
    return _webhook(row)


def _webhook(row: Row[Any]) -> Webhook:
    facts = {name: value for name, value in row._mapping.items() if name != "secret"}
    return Webhook(**{**facts, "events": tuple(map(WebhookEvent, row.events))})


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**row._mapping)
