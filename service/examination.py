"""What `tomotrain doctor` looks at: each thing with what is wrong, and the cure. Changes nothing.

An examination goes on whatever a look raises: what cannot be looked at is a fault of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a thing is: a `warning` wants looking after, with a `fault` the service does not work."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Result:
    """One thing that was looked at: what was found, and for what is wrong the cure."""

    name: str
    verdict: Verdict
    found: str
    cure: str = ""


def sound(name: str, found: str) -> Result:
    """All is well."""
    return Result(name, Verdict.OK, found)


def warning(name: str, found: str, cure: str) -> Result:
    """Something wants looking after."""
    return Result(name, Verdict.WARNING, found, cure)


def fault(name: str, found: str, cure: str) -> Result:
    """Something does not work."""
    return Result(name, Verdict.FAULT, found, cure)


Look = Callable[[], Iterator[Result]]


def examine(looks: Sequence[tuple[str, Look]]) -> Iterator[Result]:
    """Every result, in order; `looks` are named for when they cannot be done."""
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:  # whatever was met: the next look may go better
            cure = "see the cause; TOMOTRAIN_LOG_FORMAT=json and the service's log may say more"
            yield fault(name, f"cannot be looked at: {type(error).__name__}: {error}", cure)


def worst(results: Sequence[Result]) -> Verdict:
    """Of all of them."""
    order = list(Verdict)
    return max((result.verdict for result in results), key=order.index, default=Verdict.OK)
