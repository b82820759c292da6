"""The words that the web and the workers share about work: `Job`, `JobState`, `JobKind`, the task's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypedDict

LONGEST_LINE = 10_000
"""So many queued jobs of one queue are looked at to tell where one of them stands."""
KEPT_ARTIFACT = "model.safetensors"
"""What a job that makes a model writes; such a job is kept until somebody removes it."""
RUN_JOB = "tomotrain.run_job"
"""The name of the Celery task that runs a job. Its only argument is the job's id; the catalogue knows the
rest.
"""
HELP_JOB = "tomotrain.help_job"
"""Likewise of the one that helps another worker with a job that it runs."""


class JobState(StrEnum):
    """Where a job stands. `waiting` means: for another job, such as the ingest of its volume."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
OWNED = frozenset({JobState.RUNNING, JobState.CANCELLING})
"""States in which a worker holds the lease."""


class Queue(StrEnum):
    """Separate Celery queues, because priorities inside one do not hold under load."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    TRAIN = "train"


@dataclass(frozen=True)
class JobKind:
    """What a worker can do, as it announces it at start.

    `parameters_schema` and `result_schema` are JSON Schema 2020-12: the service validates requests
    against the first, and forms are drawn from it. `internal` kinds are submitted by the service alone.
    """

    name: str
    version: str
    title: str
    description: str
    queue: Queue
    parameters_schema: dict[str, Any]
    result_schema: dict[str, Any]
    needs_volume: bool = True
    internal: bool = False


@dataclass(frozen=True)
class WorkerRecord:
    """A worker as it announced itself: `kinds` are names, `last_seen` is seconds since 1970 (UTC)."""

    name: str
    device: str
    kinds: tuple[str, ...]
    last_seen: float


@dataclass(frozen=True)
class Progress:
    """How far a job has come: `done` of `total` units in a named phase. `total` is None when unknown."""

    phase: str
    done: int = 0
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Artifact:
    """A file that a job wrote: its name, size in bytes, sha-256 and media type."""

    name: str
    size: int
    sha256: str
    media_type: str


@dataclass(frozen=True)
class Job:
    """One row of the catalogue's jobs. Times are seconds since 1970 (UTC).

    `error` is `{"code", "detail", "retryable", ...facts}` when the job failed, else None. `attempt` is 0
    until the first claim; it is the fencing token: only the attempt that owns the job can finish it.
    `kind_version` is the version that the kind had when the job was submitted, `trace` the request's
    `traceparent` (W3C), `submitted_by` who sent it. `retry_of` is the job that it repeats, `retried_by` the
    last one that repeats it.
    """

    id: str
    kind: str
    state: JobState
    attempt: int
    max_attempts: int
    parameters: dict[str, Any]
    volume_id: str | None
    queue: Queue
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    artifacts: tuple[Artifact, ...] = ()
    worker: str | None = None
    depends_on: str | None = None
    lease_until: float | None = None
    revision: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    project_id: str = "default"
    kind_version: str | None = None
    retry_of: str | None = None
    retried_by: str | None = None
    submitted_by: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class Submission:
    """A job that somebody wants done. `retry_of` is the job that it repeats."""

    kind: str
    parameters: dict[str, Any]
    volume_id: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    retry_of: str | None = None


@dataclass(frozen=True)
class Sender:
    """Who submits, and for which project; `trace` is the request's `traceparent`."""

    project_id: str = "default"
    name: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class RequestKey:
    """A request that is done once, however often it is sent: its Idempotency-Key, which counts for one
    address (`POST /v1/jobs`), and the sha-256 of its body's meaning.
    """

    address: str
    key: str
    digest: str


class JobFilter(TypedDict, total=False):
    """Which jobs are listed; None: whatever it is. Times are seconds since 1970 (UTC).

    `labels` are all to be there; `model` is the value of the parameter of that name.
    """

    project_id: str | None
    state: JobState | None
    kind: str | None
    volume_id: str | None
    model: str | None
    labels: Sequence[tuple[str, str]]
    created_after: float | None
    created_before: float | None


@dataclass(frozen=True)
class Line:
    """What waits in a queue, in the order of submission, and who is there to do it.

    `queued` are the ids and kinds of the first `LONGEST_LINE` queued jobs; `running` the kinds of the jobs
    that its workers run now, with the seconds since each began; `durations` the mean seconds that jobs of
    a kind took of late, and None the mean of all; `workers` how many there are.
    """

    queued: tuple[tuple[str, str], ...]
    running: tuple[tuple[str, float], ...]
    durations: Mapping[str | None, float]
    workers: int


@dataclass(frozen=True)
class Submitted:
    """The jobs of a request; `again` when it had been sent before, and they are that one's."""

    jobs: tuple[Job, ...]
    again: bool = False
