"""The kinds of jobs that a worker can do."""

from __future__ import annotations

from workers.jobs.base import AnyKind
from workers.jobs.embed import Embed
from workers.jobs.ingest import Ingest

KINDS: tuple[AnyKind, ...] = (
    Ingest(),
    Embed(),
)
