"""Every error as a problem (RFC 9457): one table from code to status and title, one shape of body.

Codes come from `storage.errors`, from `models.errors` (through a job's recorded error), from the workers
(`worker-lost`, `internal-error`, `volume-rejected`) and from HTTP itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.addresses import shown_path
from storage.errors import InvalidParameters, JobFailed, StorageError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
MOST_ERRORS = 100
"""So many faults of one request are listed."""
LONGEST_DETAIL = 4000
"""So many characters of a detail are sent: an answer must not be larger than what it answers."""


class Meaning(NamedTuple):
    """What a code means over HTTP."""

    status: int
    title: str


MEANINGS: dict[str, Meaning] = {
    # requests
    "bad-request": Meaning(400, "The request cannot be understood"),
    "empty-upload": Meaning(400, "The upload is empty"),
    "upload-cut": Meaning(400, "The upload broke off"),
    "invalid-digest": Meaning(400, "The announced digest cannot be read"),
    "digest-mismatch": Meaning(400, "Other bytes arrived than were announced"),
    "cross-site": Meaning(403, "Pages of other sites may not change anything here"),
    "not-found": Meaning(404, "There is nothing here"),
    "volume-not-found": Meaning(404, "There is no such volume"),
    "upload-not-found": Meaning(404, "There is no such upload"),
    "job-not-found": Meaning(404, "There is no such job"),
    "artifact-not-found": Meaning(404, "There is no such artifact"),
    "key-not-found": Meaning(404, "The volume has no such object"),
    "project-not-found": Meaning(404, "There is no such project"),
    "access-key-not-found": Meaning(404, "There is no such API key"),
    "webhook-not-found": Meaning(404, "There is no such webhook"),
    "method-not-allowed": Meaning(405, "This method is not offered here"),
    "not-acceptable": Meaning(406, "The result is not there in this form"),
    "upload-idle": Meaning(408, "Nothing came for too long"),
    "conflict": Meaning(409, "Not possible in the present state"),
    "volume-not-ready": Meaning(409, "The volume is not ready"),
    "job-not-finished": Meaning(409, "The job has not finished"),
    "job-failed": Meaning(409, "The job has no result"),
    "cancelled": Meaning(409, "The job was cancelled"),
    "volume-rejected": Meaning(409, "The volume was refused"),
    "not-retryable": Meaning(409, "The job cannot be repeated"),
    "job-expired": Meaning(410, "The job has been removed"),
    "volume-in-use": Meaning(409, "Jobs use the volume"),
    "upload-finished": Meaning(409, "The upload is complete"),
    "upload-incomplete": Meaning(409, "Objects of the upload are missing"),
    "wrong-offset": Meaning(409, "The upload goes on elsewhere"),
    "object-differs": Meaning(409, "The object arrived before, with other bytes"),
    "upload-gone": Meaning(410, "The upload has ended"),
    "tus-version": Meaning(412, "Another version of the tus protocol is needed"),
    "scan-too-large": Meaning(413, "The scan is too large"),
    "body-too-large": Meaning(413, "The request's body is too large"),
    "unsupported-scan": Meaning(415, "The scan is of a kind that is not read"),
    "unsupported-media-type": Meaning(415, "The body is of a kind that is not read"),
    "range-not-satisfiable": Meaning(416, "The range lies outside"),
    "invalid-request": Meaning(422, "The request does not fit"),
    "invalid-parameters": Meaning(422, "The job's parameters do not fit"),
    "unknown-kind": Meaning(422, "No worker offers this kind of job"),
    "head-too-large": Meaning(431, "The request's address or headers are too large"),
    "index-out-of-range": Meaning(422, "The index lies outside of the volume"),
    "invalid-scan": Meaning(422, "The scan is damaged or inconsistent"),
    "bad-key": Meaning(422, "No object of a volume has such a key"),
    "upload-busy": Meaning(423, "Another request writes to the upload"),
    "checksum-mismatch": Meaning(460, "Other bytes arrived than the checksum says"),
    "scan-error": Meaning(422, "The scan cannot be read"),
    "unsafe-archive": Meaning(400, "The archive is not safe to unpack"),
    "invalid-idempotency-key": Meaning(400, "The Idempotency-Key cannot be read"),
    "invalid-batch": Meaning(422, "Jobs of the batch do not fit"),
    "idempotency-key-reused": Meaning(422, "The Idempotency-Key came with another request before"),
    # access
    "no-credentials": Meaning(401, "The request does not say who sends it"),
    "bad-credentials": Meaning(401, "The credentials are not valid"),
    "missing-scope": Meaning(403, "The key may not do this"),
    "source-not-allowed": Meaning(403, "Nothing may be imported from there"),
    "source-not-found": Meaning(422, "There is nothing to import"),
    "source-not-built-in": Meaning(501, "Imports from there are not built in"),
    "address-not-allowed": Meaning(403, "The service does not connect to this address"),
    "unknown-scope": Meaning(422, "There is no such scope"),
    "too-many-requests": Meaning(429, "Too many requests"),
    "quota-exceeded": Meaning(429, "The project's quota is used up"),
    # jobs
    "invalid-shape": Meaning(422, "The method cannot take this shape"),
    "invalid-config": Meaning(422, "The method cannot take this setting"),
    "sample-out-of-range": Meaning(500, "A sampled value contradicts the scan's statistics"),
    "non-finite": Meaning(422, "An array is not finite"),
    "non-finite-sample": Meaning(422, "A sampled value is not finite"),
    "over-budget": Meaning(422, "The job needs more memory than a worker may use"),
    "out-of-memory": Meaning(422, "The job ran out of memory"),
    "source-failed": Meaning(500, "The voxels could not be read"),
    "model-error": Meaning(500, "The computation failed"),
    "invalid-cohort": Meaning(422, "Nothing can be learnt from this table"),
    "cohort-not-ready": Meaning(409, "Scans of the table are still being read"),
    "unusable-model": Meaning(422, "The model cannot be used"),
    "corrupt-volume": Meaning(500, "The stored volume is damaged"),
    "unreadable-volume": Meaning(501, "The volume cannot be decoded here"),
    "unreachable-target": Meaning(422, "The scan cannot be compressed like that"),
    "unsuitable-compressor": Meaning(422, "The compressor cannot take this scan"),
    "corrupt-artifact": Meaning(500, "A stored result is damaged"),
    "storage-error": Meaning(500, "The store failed"),
    "worker-lost": Meaning(500, "The worker was lost too often"),
    "lease-lost": Meaning(500, "The worker lost the job"),
    "internal-error": Meaning(500, "The service failed"),
    # operations
    "catalogue-unavailable": Meaning(503, "The catalogue does not answer"),
    "catalogue-too-new": Meaning(503, "The catalogue is of a later release"),
    "not-ready": Meaning(503, "The service is not ready"),
    "storage-low": Meaning(507, "The disk is nearly full"),
    "storage-full": Meaning(507, "The disk is full"),
}

_CODE_OF_STATUS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
    422: "invalid-request",
}
_MEMBERS = frozenset(
    {"type", "title", "status", "detail", "instance", "code", "errors", "retryable", "request_id"}
)


class ApiError(Exception):
    """An error that only HTTP knows. `errors` is a list of (JSON pointer, what is wrong)."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors = code, detail, errors
        self.retryable, self.headers = retryable, dict(headers or {})


def problem(
    code: str,
    detail: str,
    *,
    instance: str,
    request_id: str | None = None,
    errors: Sequence[tuple[str, str]] = (),
    retryable: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of RFC 9457 for a code; `facts` become extension members."""
    status, title = MEANINGS.get(code, MEANINGS["internal-error"])
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "detail": _shortened(detail),
        "instance": instance,
        "code": code,
        "errors": [
            {"pointer": _shortened(pointer), "detail": _shortened(wrong)}
            for pointer, wrong in errors[:MOST_ERRORS]
        ],
        "retryable": retryable,
    }
    if request_id is not None:
        body["request_id"] = request_id
    extensions = {name: plain(value) for name, value in (facts or {}).items() if name not in _MEMBERS}
    return {**body, **extensions}


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_DETAIL else f"{text[: LONGEST_DETAIL - 2]} …"


def recorded_problem(error: Mapping[str, Any], *, instance: str) -> dict[str, Any]:
    """The error that the catalogue keeps with a job or a volume, as a problem."""
    facts = dict(error)
    return problem(
        error["code"],
        error["detail"],
        instance=instance,
        errors=_in_parameters(facts.pop("problems", [])),
        retryable=bool(error.get("retryable", False)),
        facts=facts,
    )


def _in_parameters(problems: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is wrong with a job's parameters, with pointers into the request that brought them."""
    return [(f"/parameters{pointer}", wrong) for pointer, wrong in problems]


def plain(value: Any) -> Any:
    """The value with what JSON can hold: numbers that are not finite become null, the unknown text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value)


def problem_response(
    request: Request,
    code: str,
    detail: str,
    *,
    errors: Sequence[tuple[str, str]] = (),
    retryable: bool = False,
    facts: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer to a request that failed; says when to come back where that can help."""
    body = problem(
        code,
        detail,
        instance=shown_path(request.url.path),
        request_id=request.state.request_id,
        errors=errors,
        retryable=retryable,
        facts=facts,
    )
    waiting = {"Retry-After": str(RETRY_AFTER_S)} if retryable else {}
    return JSONResponse(body, body["status"], {**waiting, **(headers or {})}, MEDIA_TYPE)


def code_of_status(status: int) -> str:
    """The code of an error that came without one, such as the framework's own."""
    return _CODE_OF_STATUS.get(status, "bad-request" if status < 500 else "internal-error")


def install(app: FastAPI) -> None:
    """Make every error that a route can raise a problem."""
    app.add_exception_handler(StorageError, _from_storage)
    app.add_exception_handler(ApiError, _from_api)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(HTTPException, _from_framework)
    app.add_exception_handler(ClientDisconnect, _from_disconnect)


def _from_storage(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StorageError)
    facts = error.facts()
    errors: Sequence[tuple[str, str]] = ()
    if isinstance(error, InvalidParameters):
        errors = _in_parameters(facts.pop("problems"))
    if isinstance(error, JobFailed) and error.cause is not None:
        facts["cause"] = recorded_problem(error.cause, instance=f"/v1/jobs/{error.job_id}")
    return problem_response(
        request, error.code, str(error), errors=errors, retryable=error.retryable, facts=facts
    )


def _from_api(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return problem_response(
        request,
        error.code,
        error.detail,
        errors=error.errors,
        retryable=error.retryable,
        headers=error.headers,
    )


def _from_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [_validation_pointer(item) for item in error.errors()[:MOST_ERRORS]]
    detail = "; ".join(f"{pointer}: {wrong}" for pointer, wrong in errors)
    return problem_response(request, "invalid-request", detail, errors=errors)


def _validation_pointer(item: Mapping[str, Any]) -> tuple[str, str]:
    """Where and what: a JSON pointer into the body, or `#name` for a parameter of the address or query."""
    place, *steps = item["loc"]
    if place == "body":
        return "".join(f"/{step}" for step in steps) or "/", item["msg"]
    return "#" + ".".join(str(step) for step in steps), item["msg"]


def _from_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = code_of_status(error.status_code)
    detail = f"{request.method} {shown_path(request.url.path)}: {error.detail}"
    return problem_response(request, code, detail, headers=error.headers)


def _from_disconnect(request: Request, error: Exception) -> JSONResponse:
    return problem_response(request, "upload-cut", "the connection closed before the body had arrived whole")
