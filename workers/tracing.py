"""A span for each attempt at a job, in the trace of the request that submitted it, and one for each phase.

Every line that is logged meanwhile in the same thread has the job's id, its attempt and the trace's id;
without a place for spans (storage/telemetry.py) the lines alone have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bound_contextvars

from storage.jobs import Job, JobState, Progress
from storage.telemetry import tracer_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE = "tomotrain-worker"
LOST = "lost"


class JobSpan:
    """One attempt; `tracer` and `span` are None where spans go nowhere."""

    def __init__(self, tracer: Tracer | None = None, span: Span | None = None) -> None:
        self._tracer, self._span = tracer, span
        self._phase: tuple[str, Span] | None = None

    def progress(self, progress: Progress) -> None:
        """Begin a span when the phase is another one."""
        if self._tracer is not None and (self._phase is None or self._phase[0] != progress.phase):
            self._begin(progress.phase)

    def ended(self, job: Job | None) -> None:
        """What became of the attempt: the job as it is now, None where another worker has it."""
        if self._span is None:
            return
        outcome = LOST if job is None else str(job.state)
        self._span.set_attribute("tomotrain.job.outcome", outcome)
        if job is not None and job.error is not None:
            self._span.set_attribute("error.type", str(job.error["code"]))
        if outcome in (LOST, JobState.FAILED, JobState.QUEUED):
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra

            self._span.set_status(StatusCode.ERROR)

    def close(self) -> None:
        """End the phase that is open."""
        if self._phase is not None:
            self._phase[1].end()
            self._phase = None

    def _begin(self, phase: str) -> None:
        assert self._tracer is not None
        assert self._span is not None
        from opentelemetry import trace  # noqa: PLC0415 - as above

        self.close()
        here = trace.set_span_in_context(self._span)
        self._phase = (phase, self._tracer.start_span(phase or "working", context=here))


@contextmanager
def job_span(job: Job) -> Iterator[JobSpan]:
    """The span of one attempt at a job, for as long as the block runs."""
    provider = _provider()
    if provider is None:
        with bound_contextvars(job_id=job.id, attempt=job.attempt, **_trace_of(job)):
            yield JobSpan()
        return
    tracer = provider.get_tracer("tomotrain.workers")
    with tracer.start_as_current_span(
        f"job {job.kind}",
        context=_parent(job),
        kind=_consumer(),
        attributes=_attributes(job),
        record_exception=False,  # its words may hold more than a span may
    ) as span:
        here, trace_id = JobSpan(tracer, span), f"{span.get_span_context().trace_id:032x}"
        with bound_contextvars(job_id=job.id, attempt=job.attempt, trace_id=trace_id):
            try:
                yield here
            finally:
                here.close()


def flush() -> None:
    """Send what has not gone out; at the end of a process."""
    provider = _provider() if _provider.cache_info().currsize else None
    _provider.cache_clear()
    if provider is not None:
        provider.shutdown()


@cache
def _provider() -> TracerProvider | None:
    """This process's, made by its first job: after the fork."""
    return tracer_provider(SERVICE)


def _attributes(job: Job) -> dict[str, Any]:
    return {
        "tomotrain.job.id": job.id,
        "tomotrain.job.kind": job.kind,
        "tomotrain.job.queue": str(job.queue),
        "tomotrain.job.attempt": job.attempt,
    }


def _parent(job: Job) -> Any:
    """The context of the request that submitted the job; an empty one where it is not known."""
    from opentelemetry.context import Context  # noqa: PLC0415 - as above
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    if job.trace is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": job.trace}, context=Context())


def _trace_of(job: Job) -> dict[str, str]:
    """The id of the trace that a job was submitted in."""
    parts = (job.trace or "").split("-")
    return {"trace_id": parts[1]} if len(parts) == 4 else {}


def _consumer() -> Any:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as above

    return SpanKind.CONSUMER
