"""Audit records as AuditEvents of FHIR R4 (HL7 FHIR 4.0.1), which repositories of IHE ATNA take.

The record's hash goes along as a detail of the entity, so that a copy can be compared with the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.schemas import timestamp
from storage.audit import AuditRecord

MEDIA_TYPE = "application/fhir+json"
_TYPE = {
    "system": "http://terminology.hl7.org/CodeSystem/audit-event-type",
    "code": "rest",
    "display": "RESTful Operation",
}
_ACTIONS = {
    "C": ("create", "submit", "send", "upload", "import", "open", "complete", "retry", "put"),
    "R": ("view", "get", "list", "read", "head", "search"),
    "D": ("delete", "revoke", "close", "abort"),
    "U": ("change", "update", "patch", "append"),
}
"""Codes of `audit-event-action` by the first word of what was done; E (execute) for all else."""


def bundle(records: Iterable[AuditRecord]) -> dict[str, Any]:
    """A Bundle of type `collection`."""
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": event(each)} for each in records],
    }


def event(record: AuditRecord) -> dict[str, Any]:
    """One record as an AuditEvent."""
    return {
        "resourceType": "AuditEvent",
        "id": f"audit-{record.sequence}",
        "type": _TYPE,
        "subtype": [{"code": record.action}],
        "action": _action(record.action),
        "recorded": timestamp(record.at),
        "outcome": _outcome(record.outcome),
        "outcomeDesc": f"HTTP {record.outcome}",
        "agent": [{"who": {"identifier": {"value": record.actor}}, "requestor": True}],
        "source": {"observer": {"display": "Tomotrain"}},
        "entity": [
            {
                "what": {"identifier": {"value": record.subject}},
                "detail": [
                    {"type": name, "valueString": value}
                    for name, value in (
                        ("request-id", record.request_id),
                        ("project", record.project_id),
                        ("sequence", str(record.sequence)),
                        ("hash", record.hash),
                    )
                    if value
                ],
            }
        ],
    }


def _action(action: str) -> str:
    first = action.partition("-")[0]
    return next((code for code, words in _ACTIONS.items() if first in words), "E")


def _outcome(status: int) -> str:
    """`audit-event-outcome`: success, minor failure (the request), serious failure (the service)."""
    return "0" if status < 400 else "4" if status < 500 else "8"
