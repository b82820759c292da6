"""Operations: whether the process lives, and whether it is of use; and what the codes of problems mean."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from service.deps import Parts, Services
from service.errors import MEANINGS, ApiError
from service.schemas import PROBLEMS, Health

router = APIRouter(tags=["operations"], responses=PROBLEMS)


@router.get("/livez", response_model=Health)
def live() -> Health:
    """200 as long as this process answers at all."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health)
def ready(parts: Parts) -> Response:
    """200 when catalogue, broker and a worker are there; else 503 with the reason for each that is not."""
    reasons = {name: check(parts) for name, check in _CHECKS.items()}
    checks = {name: reason or "ok" for name, reason in reasons.items()}
    if any(reasons.values()):
        missing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
        faults = [(name, reason) for name, reason in reasons.items() if reason]
        raise ApiError("not-ready", missing, errors=faults, retryable=True)
    return JSONResponse(Health(status="ok", checks=checks).model_dump())


@router.get("/problems/{code}")
def meaning(code: str) -> dict[str, str | int]:
    """What the `type` of a problem points to."""
    if code not in MEANINGS:
        raise ApiError("not-found", f"no problem has the code {code!r}")
    status, title = MEANINGS[code]
    return {"type": f"/problems/{code}", "title": title, "status": status}


def _catalogue(parts: Services) -> str:
    try:
        parts.catalogue.ping()
    except Exception as error:  # whatever the database raises means: it does not answer
        return f"does not answer ({type(error).__name__})"
    return ""


def _broker(parts: Services) -> str:
    return "" if parts.queue.reachable() else "does not answer; jobs are kept, and rung when it is back"


def _worker(parts: Services) -> str:
    try:
        seen = [worker.last_seen for worker in parts.catalogue.workers()]
    except Exception as error:  # as above
        return f"unknown, the catalogue does not answer ({type(error).__name__})"
    fresh_s = parts.settings.worker_fresh_s
    if not seen:
        return "none has announced itself; start one"
    age = time.time() - max(seen)
    return "" if age <= fresh_s else f"the last was seen {age:.0f} s ago, over {fresh_s:.0f} s"


_CHECKS: dict[str, Callable[[Services], str]] = {
    "catalogue": _catalogue,
    "broker": _broker,
    "worker": _worker,
}
