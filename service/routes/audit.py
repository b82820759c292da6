"""The audit log: who did what to what, newest first; as JSON, or as FHIR AuditEvents."""

from __future__ import annotations

import base64
import json
import re
from typing import Annotated

from fastapi import APIRouter, Request, Response, Security

from service import audit_fhir
from service.conditional import PageSize, PageToken, json_answer, next_link
from service.deps import Parts, identified
from service.described import CONDITIONAL, UNCHANGED
from service.errors import ApiError
from service.identity import Principal
from service.schemas import PROBLEMS, Wire, timestamp
from storage.access import Scope
from storage.audit import AuditRecord

router = APIRouter(tags=["operations"], responses=PROBLEMS)

_TOKEN = re.compile(r"[1-9][0-9]{0,17}")
Reader = Annotated[Principal, Security(identified, scopes=[Scope.AUDIT_READ])]


class AuditEntry(Wire):
    """One action; `outcome` is the HTTP status, `hash` binds it to the entry before (storage/audit.py)."""

    sequence: int
    at: str
    project_id: str | None
    actor: str
    action: str
    subject: str
    outcome: int
    request_id: str
    hash: str


class AuditPage(Wire):
    """Newest first. `next_page_token` is null on the last page (AIP-158)."""

    records: list[AuditEntry]
    next_page_token: str | None = None


@router.get(
    "/v1/audit",
    response_model=AuditPage,
    responses={200: {"content": {audit_fhir.MEDIA_TYPE: {"schema": {"type": "object"}}}}, **UNCHANGED},
    openapi_extra=CONDITIONAL,
)
def list_audit(
    request: Request, parts: Parts, who: Reader, page_size: PageSize = 50, page_token: PageToken = None
) -> Response:
    """What was done in the sender's project; with the scope `admin`, everywhere. Scope: `audit:read`.

    With `Accept: application/fhir+json` a Bundle of R4 AuditEvents, with the same `Link` to the next page.
    """
    project_id = None if Scope.ADMIN in who.scopes else who.project_id
    rows = parts.audit.records(project_id=project_id, before=_sequence(page_token), limit=page_size + 1)
    shown = rows[:page_size]
    token = _token(shown[-1]) if len(rows) > page_size else None
    headers = {**next_link(request, token), "Vary": "Accept"}
    if audit_fhir.MEDIA_TYPE in request.headers.get("accept", ""):
        body = json.dumps(audit_fhir.bundle(shown))
        return Response(
            body, media_type=audit_fhir.MEDIA_TYPE, headers={**headers, "Cache-Control": "no-store"}
        )
    page = AuditPage(records=[_entry(row) for row in shown], next_page_token=token)
    return json_answer(request, page, headers=headers)


def _entry(record: AuditRecord) -> AuditEntry:
    return AuditEntry(**{**vars(record), "at": timestamp(record.at)})


def _token(record: AuditRecord) -> str:
    return base64.urlsafe_b64encode(str(record.sequence).encode()).decode()


def _sequence(token: str | None) -> int | None:
    """The record that a page goes on after. Raises ApiError for a token that was not given out here."""
    if token is None:
        return None
    try:
        told = base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError:
        told = ""
    if not _TOKEN.fullmatch(told):
        detail = "page_token: use next_page_token of the page before, unchanged"
        raise ApiError("invalid-request", detail, errors=[("#page_token", "not a page token")])
    return int(told)
