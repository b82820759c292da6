"""How every process writes its log: one line for each thing, as text or as JSON (structlog over logging).

Whatever uses `logging` goes through here, uvicorn and Celery too. A line has its time (ISO 8601, UTC), level,
logger and message, and what was bound in its thread or task: `request_id`, `job_id`, `attempt`, `trace_id`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog
from structlog.typing import Processor

LogFormat = Literal["text", "json"]
FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "celery", "celery.task", "celery.redirected")
"""Loggers that bring handlers of their own."""
SILENT = ("uvicorn.access",)
"""They write down addresses with their queries."""
QUIET = ("httpx", "httpcore", "urllib3", "opentelemetry")
"""They tell of every connection; of them only warnings."""


def set_up(log_format: LogFormat, *, level: int = logging.INFO) -> None:
    """Let all of this process's loggers write lines of this form to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in FOREIGN:
        foreign = logging.getLogger(name)
        foreign.handlers.clear()
        foreign.propagate = True
    for name in SILENT:
        silent = logging.getLogger(name)
        silent.handlers.clear()
        silent.propagate = False
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Makes a line of a record of `logging`."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_ending(log_format)],
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.stdlib.ExtraAdder(allow=EXTRA),
        ],
    )


EXTRA = ("method", "route", "status", "seconds", "received", "sent")
"""What a line may say beside its message, by `extra` (service/request_log.py)."""


def _ending(log_format: LogFormat) -> Sequence[Processor]:
    if log_format == "json":
        return (
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        )
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback, timestamp_key="time", pad_event_to=0
    )
    return (renderer,)
