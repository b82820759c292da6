"""Every operation of the API, given something bad: a problem that says what is wrong, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from furnished import TUS, Room
from problem_checks import assert_problem

from service.errors import MEDIA_TYPE

STRANGER = {"headers": {"Authorization": "Bearer tt_nobody"}}
OFFSETS = {**TUS, "Content-Type": "application/offset+octet-stream"}
NO_UPLOAD, NO_JOB, NO_HOOK = f"upl_{36 * '0'}", "job_0", "whk_0"

BAD: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    # volumes
    "send_scan": ("POST /v1/volumes", {"content": b"no scan"}, 415, "unsupported-scan", "NIfTI"),
    "list_volumes": ("GET /v1/volumes?page_token=eA", {}, 422, "invalid-request", "next_page_token"),
    "get_volume": ("GET /v1/volumes/vol_0", {}, 404, "volume-not-found", "vol_0"),
    "delete_volume": ("DELETE /v1/volumes/{volume}?force=perhaps", {}, 422, "invalid-request", "force"),
    "get_slice": ("GET /v1/volumes/{volume}/slices/z/99", {}, 422, "index-out-of-range", "0 ... 11"),
    "get_zarr_object": ("GET /v1/volumes/{unread}/zarr/zarr.json", {}, 409, "volume-not-ready", "validating"),
    "import_volume": (
        "POST /v1/volumes:import",
        {"json": {"source": "file:///etc/passwd"}},
        403,
        "source-not-allowed",
        "TOMOTRAIN_IMPORT_ROOTS",
    ),
    # uploads
    "open_upload": ("POST /v1/uploads", {"json": {"kind": "tar"}}, 422, "invalid-request", "zarr"),
    "get_upload": (f"GET /v1/uploads/{NO_UPLOAD}", {}, 404, "upload-not-found", "upl_"),
    "abort_upload": ("DELETE /v1/uploads/x", {}, 404, "upload-not-found", "'x'"),
    "put_object": (
        "PUT /v1/uploads/{upload}/objects/c/0",
        {"content": b"x"},
        400,
        "invalid-digest",
        "Content-Digest",
    ),
    "complete_upload": ("POST /v1/uploads/{upload}/complete", {}, 422, "invalid-request", "manifest"),
    "describe_tus": ("PUT /v1/tus", {}, 405, "method-not-allowed", "OPTIONS, POST"),
    "create_tus": ("POST /v1/tus", {"headers": TUS}, 400, "bad-request", "upload-length"),
    "get_tus_offset": ("HEAD /v1/tus/{tus}", {}, 412, "tus-version", ""),
    "append_tus": (
        "PATCH /v1/tus/{tus}",
        {"content": b"x", "headers": {**OFFSETS, "Upload-Offset": "5"}},
        409,
        "wrong-offset",
        "0",
    ),
    "abort_tus": ("DELETE /v1/tus/{tus}", {}, 412, "tus-version", "Tus-Resumable: 1.0.0"),
    # jobs
    "list_kinds": ("GET /v1/kinds", STRANGER, 401, "bad-credentials", "Authorization"),
    "submit": ("POST /v1/jobs", {"json": {"kind": "cook"}}, 422, "unknown-kind", "embed"),
    "submit_batch": ("POST /v1/jobs:batch", {"json": {"jobs": []}}, 422, "invalid-request", "/jobs"),
    "retry": ("POST /v1/jobs/{succeeded}/retry", {}, 409, "not-retryable", "submit a new job"),
    "list_jobs": ("GET /v1/jobs?created_after=5", {}, 422, "invalid-request", "RFC 3339"),
    "get_job": ("GET /v1/jobs/{queued}?brief=perhaps", {}, 422, "invalid-request", "brief"),
    "remove_job": ("DELETE /v1/jobs/{queued}", {}, 409, "job-not-finished", "finished"),
    "get_result": ("GET /v1/jobs/{queued}/result", {}, 409, "job-not-finished", "queued"),
    "get_artifact": ("GET /v1/jobs/{succeeded}/artifacts/b", {}, 404, "artifact-not-found", "'b'"),
    "cancel": (f"POST /v1/jobs/{NO_JOB}/cancel", {}, 404, "job-not-found", NO_JOB),
    "get_logs": ("GET /v1/jobs/{queued}/logs?after=-1", {}, 422, "invalid-request", "after"),
    # events
    "watch_job": (f"GET /v1/jobs/{NO_JOB}/events", {}, 404, "job-not-found", NO_JOB),
    "watch_jobs": (
        "GET /v1/events",
        {"headers": {"Last-Event-ID": 101 * "0"}},
        422,
        "invalid-request",
        "Last-Event-ID",
    ),
    "list_webhooks": ("GET /v1/webhooks", STRANGER, 401, "bad-credentials", "Authorization"),
    "make_webhook": (
        "POST /v1/webhooks",
        {"json": {"url": "http://10.0.0.1/"}},
        403,
        "address-not-allowed",
        "TOMOTRAIN_WEBHOOK_HOSTS",
    ),
    "get_webhook": (f"GET /v1/webhooks/{NO_HOOK}", {}, 404, "webhook-not-found", NO_HOOK),
    "remove_webhook": ("DELETE /v1/webhooks/A", {}, 422, "invalid-request", "webhook_id"),
    "try_webhook": (f"POST /v1/webhooks/{NO_HOOK}/test", {}, 404, "webhook-not-found", NO_HOOK),
    "list_deliveries": (
        "GET /v1/webhooks/{webhook}/deliveries?page_size=0",
        {},
        422,
        "invalid-request",
        "page_size",
    ),
    # access
    "who_am_i": ("GET /v1/session", STRANGER, 401, "bad-credentials", "tomotrain keys create"),
    "sign_in": ("POST /v1/session", {"json": {"key": "tt_x"}}, 401, "bad-credentials", "Bearer"),
    "sign_out": (
        "DELETE /v1/session",
        {"headers": {"Origin": "https://other.example"}},
        403,
        "cross-site",
        "own pages",
    ),
    "list_keys": ("GET /v1/keys", STRANGER, 401, "bad-credentials", "Authorization"),
    "create_key": (
        "POST /v1/keys",
        {"json": {"name": "a", "scopes": ["root"]}},
        422,
        "invalid-request",
        "/scopes/0",
    ),
    "revoke_key": ("DELETE /v1/keys/x", {}, 404, "access-key-not-found", "'x'"),
    # operations
    "list_audit": ("GET /v1/audit?page_token=eA", {}, 422, "invalid-request", "next_page_token"),
    "live": ("POST /livez", {}, 405, "method-not-allowed", "GET"),
    "started": ("POST /startupz", {}, 405, "method-not-allowed", "GET"),
    "ready": ("POST /readyz", {}, 405, "method-not-allowed", "GET"),
    "meaning": ("GET /problems/none", {}, 404, "not-found", "'none'"),
    "metrics": ("GET /metrics", STRANGER, 401, "bad-credentials", "Authorization"),
    # DICOMweb
    "store_instances": (
        "POST /dicomweb/studies",
        {"content": b"x", "headers": {"Content-Type": "application/dicom"}},
        415,
        "unsupported-media-type",
        "multipart/related",
    ),
    "store_instances_of_study": (
        "POST {study}",
        {"content": b"x", "headers": {"Content-Type": "multipart/related"}},
        400,
        "bad-request",
        "boundary",
    ),
    "search_studies": ("GET /dicomweb/studies?limit=-1", {}, 422, "invalid-request", "limit"),
    "search_series": ("GET /dicomweb/series?Smell=x", {}, 422, "invalid-request", "leave it out"),
    "search_series_of_study": (
        "GET {study}/series?SeriesInstanceUID=x",
        {},
        422,
        "invalid-request",
        "SeriesInstanceUID",
    ),
    "search_instances_of_study": (
        "GET {study}/instances",
        {"headers": {"Accept": "application/dicom+xml"}},
        406,
        "not-acceptable",
        "application/dicom+json",
    ),
    "search_instances_of_series": (
        "GET {study}/series/{series}/instances?offset=x",
        {},
        422,
        "invalid-request",
        "offset",
    ),
    "retrieve_study": (
        "GET {study}",
        {"headers": {"Accept": "application/zip"}},
        406,
        "not-acceptable",
        "multipart/related",
    ),
    "retrieve_series": ("GET {study}/series/1.2", {}, 404, "not-found", "no such series"),
    "retrieve_instance": (
        "GET {study}/series/{series}/instances/{instance}",
        {"headers": {"Accept": "image/jpeg"}},
        406,
        "not-acceptable",
        "application/dicom",
    ),
    "retrieve_frame": (
        "GET {study}/series/{series}/instances/{instance}/frames/2",
        {},
        404,
        "not-found",
        "one frame",
    ),
    "retrieve_study_metadata": ("GET /dicomweb/studies/1.2/metadata", {}, 404, "not-found", "search by"),
    "retrieve_series_metadata": (
        "GET {study}/series/a.b/metadata",
        {},
        422,
        "invalid-request",
        "series",
    ),
    "retrieve_instance_metadata": (
        "GET {study}/series/{series}/instances/{instance}/metadata",
        {"headers": {"Accept": "text/html"}},
        406,
        "not-acceptable",
        "application/dicom+json",
    ),
}


def test_every_operation_is_here(room: Room) -> None:
    paths = room.house.http.get("/openapi.json").json()["paths"]
    offered = {operation["operationId"] for item in paths.values() for operation in item.values()}
    assert offered - BAD.keys() == set(), "operations without a test of bad input: add them to BAD"
    assert BAD.keys() - offered == set()


@pytest.mark.parametrize("operation", BAD)
def test_bad_input_is_refused_with_cause_and_cure(room: Room, operation: str) -> None:
    request, options, status, code, words = BAD[operation]
    answer = room.ask(request, **options)
    if request.startswith("HEAD "):  # whose answers have no body
        assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE)
        return
    body = assert_problem(answer, status, code)
    assert words in body["detail"], body["detail"]
