"""Operations: numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import SecurityScopes

from service.deps import Parts, identified
from service.metrics import OPENMETRICS, Metrics
from service.schemas import PROBLEMS
from storage.access import Scope

router = APIRouter(tags=["operations"], responses=PROBLEMS)


async def scraper(request: Request, parts: Parts) -> None:
    """Let in who may see operations; where the settings say so, anybody. Raises ApiError 401, 403 or 429."""
    if not parts.settings.metrics_open:
        await identified(request, parts, SecurityScopes([Scope.OPERATIONS_READ]), None)


@router.get(
    "/metrics",
    dependencies=[Depends(scraper)],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}, OPENMETRICS: {}}}},
    openapi_extra={"security": [{"HTTPBearer": []}]},
)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus; OpenMetrics where `Accept` takes it. Scope: `operations:read`."""
    told: Metrics = request.app.state.metrics
    content, media_type = told.exposed(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
