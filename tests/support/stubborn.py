"""Kinds of jobs that never come to a `report`, each in its own way."""

from __future__ import annotations

import time
from collections.abc import Callable

from support.probe import Probe
from workers.context import JobContext

WHOLE_S = 3600
"""None of them ends by itself within a test."""


class Stubborn(Probe):
    """Writes an artifact, says that it begins, and goes on for an hour."""

    def __init__(self, name: str, go_on: Callable[[], object]) -> None:
        super().__init__(self._begin)
        self.name = name  # type: ignore[misc]
        self._go_on = go_on

    def _begin(self, context: JobContext) -> None:  # type: ignore[override]
        context.artifacts.write_json("half.json", {})
        self._go_on()


def kernel() -> None:
    """One call into torch, of minutes on one core."""
    import torch

    torch.linalg.multi_dot([torch.eye(2048)] * 2000)


def loop() -> None:
    while True:
        pass


def locked() -> None:
    """In C, without ever letting go of the interpreter's lock."""
    sum(range(10**13))


def stubborn_kinds() -> tuple[Stubborn, ...]:
    return (
        Stubborn("kernel", kernel),
        Stubborn("loop", loop),
        Stubborn("nap", lambda: time.sleep(WHOLE_S)),
        Stubborn("locked", locked),
    )
