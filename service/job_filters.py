"""Which jobs a list is to hold, as the query of its address says."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query
from pydantic import AwareDatetime, BeforeValidator

from service.deps import Known
from service.errors import ApiError
from service.schemas import Label
from storage.jobs import JobFilter, JobState

MOST_LABELS = 8
_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:.*", re.ASCII)


def _dated(text: str) -> str:
    if not _RFC_3339.fullmatch(text):
        raise ValueError("a date and a time of RFC 3339 are needed, as in 2026-11-22T08:00:00Z")
    return text


Time = Annotated[AwareDatetime, BeforeValidator(_dated, json_schema_input_type=AwareDatetime)]

Word = Annotated[Label | None, Query(max_length=100)]
Model = Annotated[Label | None, Query(max_length=100, description="jobs that use the model of this id")]
Labels = Annotated[
    list[Label] | None,
    Query(
        max_length=MOST_LABELS,
        description="`name:value`, also several times: jobs that have all of these labels",
        examples=[["trial:a"]],
    ),
]
After = Annotated[Time | None, Query(description="submitted after this time (RFC 3339)")]
Before = Annotated[Time | None, Query(description="submitted before this time (RFC 3339)")]


async def wanted_jobs(
    who: Known,
    state: JobState | None = None,
    kind: Word = None,
    volume_id: Word = None,
    model: Model = None,
    label: Labels = None,
    created_after: After = None,
    created_before: Before = None,
) -> JobFilter:
    """What the query asks for, of the sender's project. Raises ApiError for a label without a colon."""
    return JobFilter(
        project_id=who.project_id,
        state=state,
        kind=kind,
        volume_id=volume_id,
        model=model,
        labels=[_label(text) for text in label or ()],
        created_after=None if created_after is None else created_after.timestamp(),
        created_before=None if created_before is None else created_before.timestamp(),
    )


def _label(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        detail = f"label: {text!r} has no colon; ask for a label by its name and value, as in label=trial:a"
        raise ApiError("invalid-request", detail, errors=[("#label", "needed: name:value")])
    return name, value
