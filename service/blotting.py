"""Blots out attributes of spans as they begin: needs the extra `tracing`."""

from __future__ import annotations

from collections.abc import Collection

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor


class Blotter(SpanProcessor):
    """Puts a word in the place of what some attributes say."""

    def __init__(self, names: Collection[str], word: str) -> None:
        self._names, self._word = names, word

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Blot the attributes that the span has."""
        for name in self._names:
            if name in (span.attributes or {}):
                span.set_attribute(name, self._word)
