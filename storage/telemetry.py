"""Where spans go (OpenTelemetry, OTLP over HTTP), by OpenTelemetry's own variables of the environment.

Nowhere without `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`), or without the extra `tracing`; nor
where `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none`. A collector that is away costs spans, not time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = logging.getLogger("tomotrain.storage")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SEND_EVERY_MS = 1000
SEND_WITHIN_S = 3.0


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether an environment says where spans are to go."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return (
        not off and environment.get("OTEL_TRACES_EXPORTER") != "none" and any(map(environment.get, ENDPOINTS))
    )


def tracer_provider(service: str, *before: SpanProcessor) -> TracerProvider | None:
    """What makes spans of a service of this name, and sends them; `before` see them first.

    None where nothing does. Call it after a fork: it sends from a thread.
    """
    if not wanted(os.environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("no traces: install tomotrain[tracing], or unset %s", ENDPOINTS[1])
        return None
    named = {
        "service.name": os.environ.get("OTEL_SERVICE_NAME", service),
        "service.version": version("tomotrain"),
    }
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    for processor in before:
        provider.add_span_processor(processor)
    sender = OTLPSpanExporter(timeout=SEND_WITHIN_S)
    provider.add_span_processor(BatchSpanProcessor(sender, schedule_delay_millis=SEND_EVERY_MS))
    return provider
