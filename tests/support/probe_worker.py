"""A real worker with the kinds of `support.probe`: `celery -A support.probe_worker worker`."""

from __future__ import annotations

from collections.abc import Sequence

from workers.celery_app import create_app
from workers.jobs.base import AnyKind
from workers.settings import WorkerSettings


def load_kinds() -> Sequence[AnyKind]:
    from support.probe import Log, Poison, Wait

    return (Log(), Poison(), Wait())


app = create_app(WorkerSettings(), load_kinds)
