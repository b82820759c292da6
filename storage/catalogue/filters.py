"""Which jobs a list holds, as conditions of a query."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, func

from storage.jobs import JobFilter
from storage.tables import jobs


def conditions(wanted: JobFilter, dialect: str) -> list[ColumnElement[bool]]:
    """What a job has to be, in SQL; `dialect` is `sqlite` or `postgresql`."""
    equal = {
        jobs.c.project_id: wanted.get("project_id"),
        jobs.c.state: wanted.get("state"),
        jobs.c.kind: wanted.get("kind"),
        jobs.c.volume_id: wanted.get("volume_id"),
        jobs.c.parameters["model"].as_string(): wanted.get("model"),
    }
    fitting = [column == value for column, value in equal.items() if value is not None]
    after, before = wanted.get("created_after"), wanted.get("created_before")
    if after is not None:
        fitting.append(jobs.c.created_at > after)
    if before is not None:
        fitting.append(jobs.c.created_at < before)
    return fitting + [_labelled(dialect, *label) for label in wanted.get("labels", ())]


def _labelled(dialect: str, name: str, value: str) -> ColumnElement[bool]:
    """That a job has a label. Names are compared as values, since a JSON path cannot hold every name."""
    each = func.json_each if dialect == "sqlite" else func.json_each_text
    label = each(jobs.c.labels).table_valued("key", "value")
    return exists().where(label.c.key == name, label.c.value == value)
