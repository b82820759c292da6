"""Kinds of jobs that do what a test wants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from storage.jobs import Progress
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result


class ProbeParameters(Parameters):
    number: int = 0
    pause_s: float = 0.0


class ProbeResult(Result):
    number: float


class Probe(Kind[ProbeParameters]):
    """Calls a function."""

    name = "probe"
    version = "1"
    title = "Probe"
    description = "Does what a test wants."
    needs_volume = False
    parameters = ProbeParameters
    result: ClassVar[type[Result]] = ProbeResult

    def __init__(self, behave: Callable[[JobContext], Outcome], memory_bytes: int = 0) -> None:
        self._behave, self._memory_bytes = behave, memory_bytes

    def memory_bytes(self, context: JobContext, parameters: ProbeParameters) -> int:
        return self._memory_bytes

    def run(self, context: JobContext, parameters: ProbeParameters) -> Outcome:
        return self._behave(context)


class Log(Probe):
    """Writes a line for each run to `log.txt` in the data root, so that runs can be counted; may dawdle."""

    name = "log"

    def __init__(self) -> None:
        super().__init__(_log)


class Wait(Probe):
    """Runs until it is told to stop."""

    name = "wait"

    def __init__(self) -> None:
        super().__init__(_wait)


class Poison(Probe):
    """Kills its process."""

    name = "poison"

    def __init__(self) -> None:
        super().__init__(lambda context: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[func-returns-value, arg-type, return-value]


def _log(context: JobContext) -> Outcome:
    with (context.data_root / "log.txt").open("a") as file:
        file.write(f"{context.job.id}\n")
    time.sleep(context.job.parameters.get("pause_s", 0))
    return Outcome(ProbeResult(number=context.job.parameters.get("number", 0)))


def _wait(context: JobContext) -> Outcome:
    while True:
        context.report(Progress("waiting"))
        time.sleep(0.01)
