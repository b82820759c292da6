"""A real worker with the kinds of `support.stubborn`: `celery -A support.stubborn_worker worker`."""

from __future__ import annotations

from collections.abc import Sequence

from workers.celery_app import create_app
from workers.jobs.base import AnyKind
from workers.settings import WorkerSettings


def load_kinds() -> Sequence[AnyKind]:
    from support.probe import Log, Wait
    from support.stubborn import stubborn_kinds

    return (Log(), Wait(), *stubborn_kinds())


app = create_app(WorkerSettings(), load_kinds)
