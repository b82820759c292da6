"""What is told of one attempt of a job: to the worker's log, and to the job's own (storage/job_logs.py),
which its owner may read.

Nothing that came with a scan can get into the second one. Nothing is searched for names: what may get in is
listed. A text is a literal of this program, a record's format string among them; what is put into it is a
number, a word of an enumeration, an id that the catalogue made, or the code or type of an error, and anything
else is `[withheld]`. Of errors, and of libraries' warnings, it has the type and the lines of code that they
came from.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from models.errors import ModelError
from storage.errors import ScanError, StorageError
from storage.job_logs import JobLog
from storage.jobs import Job, JobState, Progress

log = logging.getLogger("tomotrain.journal")

WITHHELD = "[withheld]"
PHASE_AGAIN_S = 10.0
"""A phase that was told of before is told of again after so long."""
PROGRESS_S = 60.0
"""So often a phase that goes on says how far it is."""
MOST_FRAMES = 30
_ID = re.compile(r"(job|vol)_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Journal:
    """Of one attempt; a context manager, in which records of `tomotrain.*` and warnings are noted too.

    A disk that refuses costs lines, never the job.
    """

    def __init__(self, data_root: Path, job: Job) -> None:
        self._data_root, self._job = data_root, job
        self._began = time.monotonic()
        self._file: JobLog | None = None
        self._handler = _Handler(self)
        self._show_warning = warnings.showwarning
        self._phase, self._phases, self._told_at = "", set[str](), 0.0

    def __enter__(self) -> Journal:
        try:
            self._file = JobLog(self._data_root, self._job.id)
        except OSError as error:
            log.warning("job %s: its log cannot be opened: %s", self._job.id, error)
        logging.getLogger("tomotrain").addHandler(self._handler)
        self._show_warning, warnings.showwarning = warnings.showwarning, self._warned
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        warnings.showwarning = self._show_warning
        logging.getLogger("tomotrain").removeHandler(self._handler)
        if self._file is not None:
            self._file.close()

    def begun(self) -> None:
        """The attempt has begun."""
        log.info("job %s (%s), attempt %d: begins", self._job.id, self._job.kind, self._job.attempt)
        self.note("info", "begun", f"attempt {self._job.attempt} of {self._job.max_attempts} begins")

    def progress(self, progress: Progress) -> None:
        """How far the job is: new phases are noted, and once a minute the numbers. Cheap."""
        now = time.monotonic()
        pause = PROGRESS_S if progress.phase == self._phase else PHASE_AGAIN_S
        if progress.phase in self._phases and now - self._told_at < pause:
            return
        self._phase, self._told_at = progress.phase, now
        self._phases.add(progress.phase)
        numbers = {"done": progress.done, "total": progress.total, "unit": progress.unit}
        self.note("info", "progress", progress.phase, numbers if progress.total else {})

    def failed(self, error: BaseException, code: str) -> None:
        """The attempt broke off. What a library said of a scan is in no log: it quotes headers."""
        trace = None if isinstance(error, ScanError) else error
        log.warning("job %s: %s", self._job.id, code, exc_info=trace)
        self.note("error", "error", f"it broke off: {code}", {"code": code, **_origin(error)})

    def overdue(self, grace_s: float) -> None:
        """It was to stop, and has not."""
        log.error("job %s does not stop within %.0f s: its process ends", self._job.id, grace_s)
        text = f"it did not stop within {grace_s:g} s, and its process was ended"
        self.note("warning", "overdue", text)

    def ended(self, job: Job | None) -> None:
        """The attempt is over: the job as it is now, None where it is another worker's."""
        log.info("job %s: %s", self._job.id, job.state if job else "lost to another worker")
        if job is None:
            text = "this attempt lost its lease; another worker has the job"
        elif job.state is JobState.QUEUED:
            text = "queued, to be tried again"
        else:
            text = str(job.state)
        self.note("info", "ended", text, {"seconds": round(time.monotonic() - self._began, 3)})

    def note(self, level: str, event: str, text: str, facts: Mapping[str, Any] | None = None) -> None:
        """Add a line; what it says must be of this program."""
        if self._file is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"at": at, "attempt": self._job.attempt, "level": level, "event": event, "text": text}
        try:
            self._file.append({**line, **(facts or {})})
        except OSError as error:
            self._file.close()
            self._file = None
            log.warning("job %s: its log ends here: %s", self._job.id, error)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """As `warnings.showwarning`; notes where a warning arose, and not what it says."""
        facts = {"type": category.__name__, "trace": [f"{_module_at(filename)}:{lineno}"]}
        self.note("warning", "warning", f"{category.__name__} of a library", facts)
        self._show_warning(message, category, filename, lineno, file, line)


class _Handler(logging.Handler):
    """Brings records of this program to a journal; not those by which the journal itself is told."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != log.name:
            error = record.exc_info[1] if record.exc_info else None
            facts = {} if error is None else _origin(error)
            self._journal.note(record.levelname.lower(), "record", _text(record), facts)


def _text(record: logging.LogRecord) -> str:
    """The record's format string, with those of its arguments that may be told."""
    if not isinstance(record.msg, str):
        return WITHHELD
    if not record.args:
        return record.msg
    if isinstance(record.args, Mapping):
        told: Any = {name: _told(value) for name, value in record.args.items()}
    else:
        told = tuple(_told(value) for value in record.args)
    try:
        return str(record.msg % told)
    except (TypeError, ValueError):
        return record.msg


def _told(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, StorageError | ModelError):
        return value.code
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, str) and _ID.fullmatch(value) else WITHHELD


def _origin(error: BaseException) -> dict[str, Any]:
    """The error's type, and the lines of code that it came through, the innermost last."""
    frames = [
        f"{frame.f_globals.get('__name__', '?')}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return {"type": type(error).__name__, "trace": frames[-MOST_FRAMES:]}


def _module_at(filename: str) -> str:
    """The module in a file, as it is imported; `?` where nothing is."""
    roots = (f"{Path(root or '.').absolute()}/" for root in sorted(sys.path, key=len, reverse=True))
    for root in roots:
        if filename.startswith(root):
            return filename.removeprefix(root).removesuffix(".py").replace("/", ".")
    return "?"
