"""405 with all the methods that an address takes (RFC 9110, section 15.5.6); a route knows only its own."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Route

from service.errors import problem_response


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Have `Allow` name the methods of every route of an address."""
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]

    def refuse(request: Request, error: Exception) -> JSONResponse:
        offered = _offered(routes, request.scope["path"]) or {"GET", "HEAD"}
        allow = ", ".join(sorted(offered))
        detail = f"{request.method} is not offered at this address; it takes {allow}"
        return problem_response(request, "method-not-allowed", detail, headers={"Allow": allow})

    app.add_exception_handler(405, refuse)


def _offered(routes: Sequence[Route], path: str) -> set[str]:
    return {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
