"""Requests that are done once: what each made is written with it, under the key that its client gave it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from storage.clock import now
from storage.database import Database
from storage.errors import KeyReused
from storage.jobs import RequestKey
from storage.tables import requests


def is_first(
    database: Database, connection: Connection, project_id: str, request: RequestKey, ids: Sequence[str]
) -> bool:
    """Whether this request has not been done before; notes the ids of what it makes.

    Of two that come at once the second waits here until the first has ended.
    """
    key = {"project_id": project_id, "address": request.address, "key": request.key}
    values = {"digest": request.digest, "ids": list(ids), "created_at": now()}
    return database.insert_new(connection, requests, key, values)


def made_before(connection: Connection, project_id: str, request: RequestKey) -> list[str] | None:
    """The ids of what this request made when it came first; None where it is new. Raises KeyReused."""
    row = connection.execute(
        select(requests).where(
            requests.c.project_id == project_id,
            requests.c.address == request.address,
            requests.c.key == request.key,
        )
    ).first()
    if row is None:
        return None
    if row.digest != request.digest:
        raise KeyReused(request.key)
    return list(row.ids)
