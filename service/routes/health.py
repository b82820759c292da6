"""Operations: whether the process lives, has started, and is of use; and what the codes of problems mean."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.checks import Checks, Finding
from service.errors import MEANINGS, ApiError
from service.schemas import PROBLEMS, Health

router = APIRouter(tags=["operations"], responses=PROBLEMS)


@router.get("/livez", response_model=Health)
async def live() -> Health:
    """200 as long as this process answers at all."""
    return Health(status="ok")


@router.get("/startupz", response_model=Health)
def started(request: Request) -> Response:
    """200 from when the catalogue has answered this process, with the schema that it needs."""
    if not getattr(request.app.state, "started", False):
        found = _checks(request).findings()["catalogue"]
        _refuse({"catalogue": found})
        request.app.state.started = True
    return JSONResponse(Health(status="ok").model_dump())


@router.get("/readyz", response_model=Health)
def ready(request: Request) -> Response:
    """200 when catalogue, broker and a worker are there; else 503 with the reason for each that is not.

    `status` is `degraded` where a queue has no worker or the disk is almost full; `checks` says which.
    """
    findings = _checks(request).findings()
    _refuse(findings)
    status = "degraded" if any(finding.warning for finding in findings.values()) else "ok"
    checks = {name: str(finding) for name, finding in findings.items()}
    return JSONResponse(Health(status=status, checks=checks).model_dump())


@router.get("/problems/{code}")
def meaning(code: str) -> dict[str, str | int]:
    """What the `type` of a problem points to."""
    if code not in MEANINGS:
        raise ApiError("not-found", f"no problem has the code {code!r}")
    status, title = MEANINGS[code]
    return {"type": f"/problems/{code}", "title": title, "status": status}


def _checks(request: Request) -> Checks:
    checks: Checks = request.app.state.checks
    return checks


def _refuse(findings: dict[str, Finding]) -> None:
    """Raise ApiError `not-ready` with every fault."""
    faults = [(name, finding.fault) for name, finding in findings.items() if finding.fault]
    if faults:
        missing = "; ".join(f"{name}: {fault}" for name, fault in faults)
        raise ApiError("not-ready", missing, errors=faults, retryable=True)
