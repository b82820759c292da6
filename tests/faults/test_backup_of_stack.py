"""A backup of the embedded stack at work, and a stack on what was made of it: everything is done there too.

Spans of both halves go to a loopback collector: the trace of a request is that of its job in the worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.first_key import kept_key
from service.stack import Stack
from storage.audit import AuditLog
from storage.backup import back_up, verify
from storage.catalogue import Catalogue
from storage.recovery import restore

pytestmark = pytest.mark.slow
JOBS = 6
WAIT_S = 240.0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that have arrived, while the environment names a collector."""
    arrived: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                arrived.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield arrived
        server.shutdown()
        thread.join()


def client(url: str, root: Path) -> httpx.Client:
    # The key of the first root opens the second: its hash is in the catalogue.
    headers = {"Authorization": f"Bearer {kept_key(root)}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)


def results(http: httpx.Client, ids: list[str]) -> dict[str, Any]:
    """What each job found, to the bit, once all have succeeded."""
    deadline, found = time.monotonic() + WAIT_S, {}
    while len(found) < len(ids):
        assert time.monotonic() < deadline, "the jobs did not end"
        for job_id in ids:
            state = http.get(f"/v1/jobs/{job_id}").json()["state"]
            assert state not in ("failed", "cancelled")
            if state == "succeeded":
                result = http.get(f"/v1/jobs/{job_id}/result").json()
                found[job_id] = [result[name] for name in ("volume_digest", "cores_digest", "certificate")]
        time.sleep(0.2)
    return found


def test_a_stack_on_a_restored_backup_does_all_that_was_asked(tmp_path: Path, spans: list[Any]) -> None:
    scan = tmp_path / "scan.nii"
    voxels = np.random.default_rng(0).normal(size=(64, 64, 64)).astype("f4")
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), scan)
    first, second = tmp_path / "first", tmp_path / "second"
    with Stack(first, port=0, environment=os.environ) as stack, client(stack.url, first) as http:
        sent = http.post("/v1/volumes", content=scan.read_bytes()).json()
        volume_id = sent["volume"]["id"]
        request = {"kind": "embed", "volume_id": volume_id}
        ids = [http.post("/v1/jobs", json=request).json()["id"] for _ in range(JOBS)]
        results(http, ids[:1])
        made = back_up(f"sqlite:///{first / 'catalogue.db'}", first, tmp_path / "copy")
        states = {http.get(f"/v1/jobs/{job_id}").json()["state"] for job_id in ids}
        digest = http.get(f"/v1/volumes/{volume_id}").json()["digest"]
        wanted = results(http, ids)
        started = time.perf_counter()
        assert http.get("/readyz").json()["status"] in ("ok", "degraded")
        assert time.perf_counter() - started < 2.0
    assert states & {"queued", "running"}, "nothing was in flight: more jobs are needed"
    assert made.left_out == ()
    assert verify(tmp_path / "copy") == []
    restore(tmp_path / "copy", second)
    with Catalogue.open(f"sqlite:///{second / 'catalogue.db'}") as catalogue:
        assert AuditLog(catalogue.database).verify() is None
    with Stack(second, port=0, environment=os.environ) as stack, client(stack.url, first) as http:
        assert http.get(f"/v1/volumes/{volume_id}").json()["digest"] == digest
        assert http.get(f"/v1/volumes/{volume_id}/slices/z/5").status_code == 200
        assert results(http, ids) == wanted
    submitted = [span for span in spans if span.name == "POST /v1/jobs"]
    ran = [span for span in spans if span.name == "job embed"]
    assert len(submitted) == JOBS
    assert {span.trace_id for span in ran} == {span.trace_id for span in submitted}
    assert {span.parent_span_id for span in ran} == {span.span_id for span in submitted}
