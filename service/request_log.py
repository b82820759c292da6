"""One line for each request that has ended: method, route's template, status, seconds, bytes, and its id.

The address itself, its query, headers and bodies are not written: they may name a patient. Probes and scrapes
are written only where they fail.
"""

from __future__ import annotations

import logging

from structlog.contextvars import bind_contextvars, bound_contextvars

from service.observing import Served
from service.tracing import span_ids

log = logging.getLogger("tomotrain.access")

PROBES = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})


def bind(request_id: str) -> None:
    """Let every line about this request have its id and its trace's."""
    ids = span_ids()
    bind_contextvars(request_id=request_id, **({} if ids is None else {"trace_id": ids[0]}))


def write(served: Served) -> None:
    """The line of a request."""
    if served.route in PROBES and served.status < 400:
        return
    facts = {
        "method": served.method,
        "route": served.route,
        "status": served.status,
        "seconds": round(served.seconds, 4),
        "received": served.received,
        "sent": served.sent,
    }
    with bound_contextvars(request_id=served.state.get("request_id", "-")):
        log.info("request", extra=facts)
