"""The catalogue's tables, and how their rows become the records that everybody else uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Double, Index, Integer, MetaData, Row, String, Table

from storage.jobs import Artifact, Job, JobKind, JobState, Progress, Queue, WorkerRecord
from storage.records import StoredVolume, VolumeRecord, VolumeState

metadata = MetaData()
Document = JSON(none_as_null=True)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("source_bytes", BigInteger, nullable=False),
    Column("source_sha256", String(64), nullable=False),
    Column("ingest_job", String(64), nullable=False),
    Column("stored", Document),
    Column("store", String),
    Column("error", Document),
    Column("revision", Integer, nullable=False, default=0),
    Index("volumes_by_ingest_job", "ingest_job"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("max_attempts", Integer, nullable=False),
    Column("parameters", Document, nullable=False),
    Column("volume_id", String(64)),
    Column("queue", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("progress", Document),
    Column("result", Document),
    Column("error", Document),
    Column("artifacts", Document),
    Column("worker", String),
    Column("depends_on", String(64)),
    Column("lease_until", Double),
    Column("revision", Integer, nullable=False, default=0),
    Column("labels", Document),
    # Scheduling, which no record shows: not to be claimed before `not_before`; rung `rings` times since
    # it was queued, last at `rung_at` (None: to be rung at once).
    Column("not_before", Double),
    Column("rung_at", Double),
    Column("rings", Integer, nullable=False, default=0),
    Index("jobs_by_lease", "state", "lease_until"),
    Index("jobs_by_volume", "volume_id"),
    Index("jobs_by_dependency", "depends_on"),
)

kinds = Table(
    "kinds",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("announced_at", Double, nullable=False),
    Column("document", Document, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("kinds", Document, nullable=False),
    Column("last_seen", Double, nullable=False),
)


SCHEDULING = frozenset({"not_before", "rung_at", "rings"})
"""Columns of jobs that no `Job` shows."""


def job_of(row: Row[Any]) -> Job:
    """The job in a row of `jobs`."""
    record = {name: value for name, value in row._mapping.items() if name not in SCHEDULING}
    progress = record["progress"]
    return Job(
        **{
            **record,
            "state": JobState(record["state"]),
            "queue": Queue(record["queue"]),
            "progress": None if progress is None else Progress(**progress),
            "artifacts": tuple(Artifact(**artifact) for artifact in record["artifacts"] or ()),
            "labels": record["labels"] or {},
        }
    )


def volume_of(row: Row[Any]) -> VolumeRecord:
    """The volume in a row of `volumes`."""
    record = dict(row._mapping)
    stored = record["stored"]
    return VolumeRecord(
        **{
            **record,
            "state": VolumeState(record["state"]),
            "stored": None if stored is None else StoredVolume.from_json(stored),
        }
    )


def worker_of(row: Row[Any]) -> WorkerRecord:
    """The worker in a row of `workers`."""
    return WorkerRecord(row.name, row.device, tuple(row.kinds), row.last_seen)


def kind_of(document: dict[str, Any]) -> JobKind:
    """The kind in a row's `document`."""
    return JobKind(**{**document, "queue": Queue(document["queue"])})


def newest_kinds(documents: Iterable[dict[str, Any]]) -> list[JobKind]:
    """Of each name the highest version (`10` is above `9`), by name."""
    newest: dict[str, JobKind] = {}
    for kind in sorted(map(kind_of, documents), key=lambda kind: _version_key(kind.version)):
        newest[kind.name] = kind
    return [newest[name] for name in sorted(newest)]


def document_of(kind: JobKind) -> dict[str, Any]:
    """What `kind_of` understands."""
    return asdict(kind)


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    parts = version.split(".")
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
