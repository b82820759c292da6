"""Which jobs a list is to hold, as the query of its address says."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import AwareDatetime

from service.deps import Known
from service.errors import ApiError
from service.schemas import Label
from storage.jobs import JobFilter, JobState

MOST_LABELS = 8

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
After = Annotated[AwareDatetime | None, Query(description="submitted after this time (RFC 3339)")]
Before = Annotated[AwareDatetime | None, Query(description="submitted before this time (RFC 3339)")]


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
