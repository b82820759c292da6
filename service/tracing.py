"""A span for each request (OpenTelemetry, HTTP server spans), named by its route's template.

FastAPI makes the spans, as a part of the trace that `traceparent` names (W3C Trace Context). What a request
says beside its method and its route may name a patient, and is blotted out before a span goes anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace

from storage.telemetry import tracer_provider

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

SERVICE = "tomotrain-api"
BLOTTED = "(left out)"
TELLING = ("url.path", "url.query", "server.address", "http.request.method_original")
"""Attributes that hold what the sender wrote."""


def provider() -> TracerProvider | None:
    """What makes this process's spans, where the environment says where they are to go."""
    return tracer_provider(SERVICE, *_blotters())


def telemetry(spans: TracerProvider | None) -> TelemetryConfig:
    """FastAPI's setting: spans of requests where there is a provider, and nothing else of its own."""
    return {
        "tracer_provider": spans,
        "tracing": spans is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
    }


def span_ids() -> tuple[str, str, str] | None:
    """Trace id, span id and flags of the current span, in hexadecimal; None where there is none."""
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return None
    return f"{here.trace_id:032x}", f"{here.span_id:016x}", f"{here.trace_flags:02x}"


def traceparent_of_span() -> str | None:
    """The current span as a W3C `traceparent`; None where there is none."""
    ids = span_ids()
    return None if ids is None else "-".join(("00", *ids))


def _blotters() -> list[SpanProcessor]:
    try:
        from service.blotting import Blotter  # noqa: PLC0415 - needs an extra
    except ImportError:
        return []
    return [Blotter(TELLING, BLOTTED)]
