"""Every attempt of a runner is a span in the trace of the job's request, with its phases and its end."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import get_contextvars
from support.probe import Probe, ProbeResult

from storage.catalogue import Catalogue
from storage.errors import StorageFull
from storage.jobs import JobState, Progress, Sender
from workers import tracing
from workers.context import JobContext
from workers.jobs.base import Outcome

DONE = Outcome(ProbeResult(number=1))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that a worker has ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", lambda: provider)
    return exporter


def test_attempts_and_phases_are_spans_of_the_requests_trace(
    catalogue: Catalogue, make_runner: Any, kept: InMemorySpanExporter
) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    bound = []

    def behave(context: JobContext) -> Outcome:
        bound.append(get_contextvars())
        context.report(Progress("reading", 1, 2))
        if context.job.attempt == 1:
            raise StorageFull("the disk is full")
        context.report(Progress("fitting", 0, 2))
        context.report(Progress("fitting", 1, 2))
        return DONE

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {}, sender=Sender(trace=f"00-{trace}-{parent}-01"))
    assert runner.run(job.id).state is JobState.QUEUED
    assert runner.run(job.id).state is JobState.SUCCEEDED
    spans = kept.get_finished_spans()
    assert [span.name for span in spans] == ["reading", "job probe", "reading", "fitting", "job probe"]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace}
    first, second = (span for span in spans if span.name == "job probe")
    for run in (first, second):
        assert f"{run.parent.span_id:016x}" == parent
    assert [span.parent.span_id for span in spans if span.name in ("reading", "fitting")] == [
        first.context.span_id,
        second.context.span_id,
        second.context.span_id,
    ]
    assert (first.attributes["tomotrain.job.attempt"], second.attributes["tomotrain.job.attempt"]) == (1, 2)
    assert (first.attributes["tomotrain.job.outcome"], first.status.is_ok) == ("queued", False)
    assert (second.attributes["tomotrain.job.outcome"], second.status.is_unset) == ("succeeded", True)
    assert [each["attempt"] for each in bound] == [1, 2]
    assert {each["trace_id"] for each in bound} == {trace}
    assert get_contextvars() == {}


def test_what_an_error_says_is_not_in_its_span(
    catalogue: Catalogue, make_runner: Any, kept: InMemorySpanExporter
) -> None:
    def behave(context: JobContext) -> Outcome:
        raise RuntimeError("Mustermann")

    ended = make_runner(Probe(behave)).run(catalogue.submit("probe", {}).id)
    assert ended.state is JobState.FAILED
    (span,) = kept.get_finished_spans()
    assert span.attributes["error.type"] == "internal-error"
    assert "Mustermann" not in span.to_json()
