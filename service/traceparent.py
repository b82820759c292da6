"""The trace that a request is part of: `traceparent` of W3C Trace Context, level 1, section 3.2."""

from __future__ import annotations

import re

from fastapi import Request

_HEADER = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?",
    re.ASCII,
)


def traceparent(request: Request) -> str | None:
    """The header, as version 00 has it; None where it is not there, or malformed: then it is ignored."""
    lines = request.headers.getlist("traceparent")
    match = _HEADER.fullmatch(lines[0].strip(" \t")) if len(lines) == 1 else None
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not (match["trace"].strip("0") and match["parent"].strip("0")):
        return None
    return f"00-{match['trace']}-{match['parent']}-{match['flags']}"
