"""One trace from the request to the job's phases, as an OTLP receiver gets it; none where none is wanted."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from house import EMBED, House, open_house, wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.contextvars import get_contextvars

from storage.jobs import Job, Progress
from storage.telemetry import wanted
from workers import tracing

NAME = "Mustermann"


class Collector:
    """What has arrived at a loopback OTLP receiver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []

    def spans(self) -> list[Any]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def span(self, name: str) -> Any:
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    def has(self, name: str) -> bool:
        return any(span.name == name for span in self.spans())


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A receiver, named by the environment."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with fresh_worker():
                yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def fresh_worker() -> Iterator[None]:
    """A worker process's spans begin anew, and are sent at its end."""
    tracing._provider.cache_clear()
    try:
        yield
    finally:
        tracing.flush()
        tracing._provider.cache_clear()


def submit(house: House, **headers: str) -> Job:
    house.catalogue.announce("worker", [replace(EMBED, needs_volume=False)], "cpu")
    answer = house.http.post(f"/v1/jobs?patient={NAME}", json={"kind": "embed"}, headers=headers)
    assert answer.status_code == 202, answer.text
    return house.catalogue.job(answer.json()["id"])


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_one_trace_goes_from_the_client_to_the_phases_of_the_job(
    collector: Collector, tmp_path: Path
) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    with open_house(tmp_path) as house:
        submitted = submit(house, traceparent=f"00-{trace}-{parent}-01", **{"User-Agent": NAME})
        house.http.get(f"/v1/jobs/{NAME}")
        job = house.catalogue.claim(submitted.id, "worker", 60)
        assert job is not None
        with tracing.job_span(job) as span:
            for phase in ("reading", "reading", "fitting"):
                span.progress(Progress(phase))
            span.ended(house.catalogue.finish(job.id, job.attempt, {}))
        tracing.flush()
    wait_until(lambda: collector.has("POST /v1/jobs") and collector.has("job embed"))
    request, run = collector.span("POST /v1/jobs"), collector.span("job embed")
    assert request.trace_id.hex() == trace
    assert request.parent_span_id.hex() == parent
    assert job.trace == f"00-{trace}-{request.span_id.hex()}-01"
    assert run.trace_id.hex() == trace
    assert run.parent_span_id == request.span_id
    told = attributes(run)
    assert told["tomotrain.job.id"] == job.id
    assert told["tomotrain.job.attempt"] == 1
    assert (told["tomotrain.job.kind"], told["tomotrain.job.queue"]) == ("embed", "batch")
    assert told["tomotrain.job.outcome"] == "succeeded"
    for phase in ("reading", "fitting"):
        assert collector.span(phase).parent_span_id == run.span_id
        assert collector.span(phase).trace_id.hex() == trace
    assert attributes(request)["http.route"] == "/v1/jobs"
    assert attributes(request)["http.response.status_code"] == 202
    assert collector.bodies
    assert not any(NAME.encode() in body for body in collector.bodies)


def test_the_job_that_reads_a_scan_is_in_the_trace_of_its_upload(
    collector: Collector, tmp_path: Path, nifti: bytes
) -> None:
    with open_house(tmp_path) as house:
        job = house.catalogue.job(house.send(nifti)["job"]["id"])
    wait_until(lambda: collector.has("POST /v1/volumes"))
    request = collector.span("POST /v1/volumes")
    assert job.trace is not None
    assert job.trace.startswith(f"00-{request.trace_id.hex()}-{request.span_id.hex()}-")


def test_a_job_that_fails_says_why_and_ends_its_phase(collector: Collector, tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        job = house.catalogue.claim(submit(house).id, "worker", 60)
        assert job is not None
        with tracing.job_span(job) as span:
            span.progress(Progress("reading"))
            error = {"code": "over-budget", "detail": NAME, "retryable": False}
            span.ended(house.catalogue.fail(job.id, job.attempt, error))
        tracing.flush()
    wait_until(lambda: collector.has("job embed"))
    run = collector.span("job embed")
    assert attributes(run)["error.type"] == "over-budget"
    assert run.status.code == run.status.STATUS_CODE_ERROR
    assert collector.span("reading").end_time_unix_nano <= run.end_time_unix_nano
    assert not any(NAME.encode() in body for body in collector.bodies)


def test_without_a_place_for_spans_the_clients_trace_still_goes_into_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    header = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    with fresh_worker(), open_house(tmp_path) as house:
        job = submit(house, traceparent=header)
        assert job.trace == header
        assert submit(house, traceparent=f"{NAME}-{'0' * 400}").trace is None
        with tracing.job_span(job) as span:
            assert get_contextvars() == {"job_id": job.id, "attempt": 0, "trace_id": header.split("-")[1]}
            span.progress(Progress("reading"))
            span.ended(job)
        assert get_contextvars() == {}


def test_a_collector_that_is_away_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    began = time.monotonic()
    with fresh_worker(), open_house(tmp_path) as house:
        for _ in range(20):
            assert house.http.get("/livez").status_code == 200
        with tracing.job_span(submit(house)):
            pass
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_own_variables_decide(environment: dict[str, str], answer: bool) -> None:
    assert wanted(environment) is answer
