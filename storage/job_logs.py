"""What was told about a job while it ran: lines of JSON (application/x-ndjson), one file per job.

    <data root>/logs/<job id>.jsonl

Lines are only ever appended, each by one write, by one attempt after the other or, where one has lost its
lease without knowing, by two at once. So a line carries no number: that is its place in the file, from 1, and
no two lines can have the same. What a killed writer left half is closed by the next one and is passed over.
The log goes when its job is removed (storage/clearing.py).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_BYTES = 10 << 20
"""Of one job's log."""
MOST_LINES, PAGE_BYTES = 1000, 1 << 20
"""Of one reading; a single line may be longer."""
FULL = "log-full"
_ROOM = 1024
"""Kept free for the line that says that the log is full."""


def log_path(data_root: Path, job_id: str) -> Path:
    """Where a job's log lies."""
    return data_root / "logs" / f"{job_id}.jsonl"


class JobLog:
    """A job's log, open for appending; a context manager. Safe for threads, also while it is being closed.

    Raises OSError where the disk refuses. A log that has been removed stays so: what is written then is lost.
    """

    def __init__(self, data_root: Path, job_id: str, *, most_bytes: int = MOST_BYTES) -> None:
        path = log_path(data_root, job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._open = True
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        end = self._end()
        self._full = FULL.encode() in end.rstrip(b"\n").rpartition(b"\n")[2]
        if end and not end.endswith(b"\n"):
            os.write(self._file, b"\n")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; the one that has no room is replaced by one that says so, and is the last."""
        content = _encoded(line)
        with self._lock:
            if self._open and not self._full:
                self._write(line, content)

    def close(self) -> None:
        """No line is added any more."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._file)

    def __enter__(self) -> JobLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any], content: bytes) -> None:
        if os.fstat(self._file).st_size + len(content) > self._most_bytes - _ROOM:
            self._full = True
            told = f"the log is full ({self._most_bytes:,} bytes); what comes after is not kept"
            content = _encoded({**_frame(line), "level": "warning", "event": FULL, "text": told})
        os.write(self._file, content)

    def _end(self) -> bytes:
        size = os.fstat(self._file).st_size
        return os.pread(self._file, _ROOM, max(size - _ROOM, 0))


@dataclass(frozen=True)
class LogPage:
    """Lines of a log, each with its `seq`; `next_after` is where the next page begins."""

    lines: tuple[dict[str, Any], ...]
    next_after: int
    more: bool


def read_log(data_root: Path, job_id: str, *, after: int = 0, limit: int = MOST_LINES) -> LogPage:
    """The lines after the `after`th, `limit` and about `PAGE_BYTES` at most; none where no log is there."""
    lines: list[dict[str, Any]] = []
    seq, size = after, 0
    for seq, line in _whole_lines(log_path(data_root, job_id), after):
        if len(lines) == limit or size > PAGE_BYTES:
            return LogPage(tuple(lines), seq - 1, True)
        size += len(line)
        with suppress(ValueError):
            lines.append({"seq": seq, **json.loads(line)})
    return LogPage(tuple(lines), seq, False)


def _whole_lines(path: Path, after: int) -> Iterator[tuple[int, bytes]]:
    """The numbers and bytes of all lines after the `after`th that have been written to their end."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for seq, line in enumerate(file, 1):
            if seq > after and line.endswith(b"\n"):
                yield seq, line


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _frame(line: Mapping[str, Any]) -> dict[str, Any]:
    """What every line has: when, and by which attempt."""
    return {name: line[name] for name in ("at", "attempt") if name in line}
