"""The worker: `celery -A workers.app worker`. The only place that reads the worker's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers.celery_app import create_app
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.jobs.base import AnyKind


def load_kinds() -> Sequence[AnyKind]:
    """Every kind of job; importing them imports torch."""
    from workers.jobs import KINDS  # noqa: PLC0415 - after the fork

    return KINDS


app = create_app(WorkerSettings(), load_kinds)
