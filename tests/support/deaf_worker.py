"""A worker whose parent answers questions and takes no message, while a file `deaf` is in the data root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from kombu.transport.redis import Channel

from workers.celery_app import create_app
from workers.jobs.base import AnyKind
from workers.settings import WorkerSettings

settings, parent = WorkerSettings(), os.getpid()
_ask_for_messages = Channel._brpop_start


def _unless_deaf(self: Any, *arguments: Any, **options: Any) -> Any:
    if os.getpid() == parent and (settings.data_root / "deaf").exists():
        return None
    return _ask_for_messages(self, *arguments, **options)


Channel._brpop_start = _unless_deaf


def load_kinds() -> Sequence[AnyKind]:
    from support.probe import Log

    return (Log(),)


app = create_app(settings, load_kinds)
