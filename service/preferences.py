"""What a client would like of an answer: `Prefer` of RFC 7240, as far as jobs know it.

Prefer: respond-async          answer at once (also without the header)
Prefer: wait=10                wait so many seconds for the job to end
Prefer: respond-async, wait=10 the same
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Request

LONGEST_WAIT_S = 30
_PREFERENCE = re.compile(
    r"""\s*(?P<name>[!#$%&'*+.^_`|~\w-]+)\s*
        (?:=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[!#$%&'*+.^_`|~\w-]+)))?\s*
        (?:;(?:[^,"]|"(?:[^"\\]|\\.)*")*)?(?:,|$)""",
    re.VERBOSE | re.ASCII,
)
_SECONDS = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class Preferences:
    """`wait_s` seconds may pass before the answer; `applied` is what of the header is followed."""

    wait_s: int = 0
    applied: str | None = None

    @classmethod
    def of(cls, request: Request) -> Preferences:
        """Those of a request. What is not understood is no preference, as the RFC asks."""
        told: dict[str, str] = {}
        for line in request.headers.getlist("prefer"):
            for name, value in _preferences(line):
                told.setdefault(name, value)
        wait = told.get("wait", "")
        if _SECONDS.fullmatch(wait):
            seconds = min(int(wait), LONGEST_WAIT_S)
            return cls(seconds, f"wait={seconds}")
        return cls(0, "respond-async" if "respond-async" in told else None)

    def headers(self) -> dict[str, str]:
        """`Preference-Applied`, where something was preferred that is followed."""
        return {} if self.applied is None else {"Preference-Applied": self.applied}


def _preferences(line: str) -> Iterator[tuple[str, str]]:
    """Names, in lower case, and values of one header line; up to where it cannot be read."""
    place = 0
    while place < len(line) and (match := _PREFERENCE.match(line, place)):
        quoted, word = match["quoted"], match["word"]
        yield match["name"].lower(), word or re.sub(r"\\(.)", r"\1", quoted or "")
        place = match.end()
