"""Kinds of jobs: what the workers have announced that they can do."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.conditional import json_answer
from service.deps import Parts, needs
from service.described import CONDITIONAL, UNCHANGED
from service.schemas import PROBLEMS, KindList, kind_view
from storage.access import Scope

router = APIRouter(
    prefix="/v1/kinds", tags=["jobs"], responses=PROBLEMS, dependencies=[needs(Scope.JOBS_READ)]
)


@router.get("", response_model=KindList, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def list_kinds(request: Request, parts: Parts) -> Response:
    """What may be submitted to `POST /v1/jobs`, each with the JSON Schema of its parameters."""
    kinds = [kind_view(kind) for kind in parts.catalogue.kinds() if not kind.internal]
    return json_answer(request, KindList(kinds=kinds))
