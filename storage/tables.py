"""The catalogue's tables, and how their rows become the records that everybody else uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    event,
)

from storage.clock import now
from storage.jobs import Artifact, Job, JobKind, JobState, Progress, Queue, WorkerRecord
from storage.records import StoredVolume, VolumeRecord, VolumeState

metadata = MetaData()
Document = JSON(none_as_null=True)
DEFAULT_PROJECT = "default"
"""Where everything is that nobody has put into a project."""


def _project() -> Column[str]:
    return Column(
        "project_id", String(64), nullable=False, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )


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
    _project(),
    Index("volumes_by_ingest_job", "ingest_job"),
    Index("volumes_by_project", "project_id", "id"),
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
    _project(),
    Column("kind_version", String(32)),
    Column("retry_of", String(64)),
    Column("retried_by", String(64)),
    Column("submitted_by", String(128)),
    Column("trace", String(64)),
    # Scheduling, which no record shows: not to be claimed before `not_before`; rung `rings` times since
    # it was queued, last at `rung_at` (None: to be rung at once). `told` is 1 once those who asked to be
    # told of its end have been noted.
    Column("not_before", Double),
    Column("rung_at", Double),
    Column("rings", Integer, nullable=False, default=0),
    Column("told", Integer, nullable=False, default=0, server_default="1"),
    # When the revision changed last, by the database's clock: storage/changes.py.
    Column("changed_at", Double, nullable=False, default=now(), server_default="0"),
    Index("jobs_by_project", "project_id", "id"),
    Index("jobs_by_queue", "queue", "state", "id", "kind"),
    Index("jobs_by_told", "told", "state"),
    Index("jobs_by_change", "changed_at", "id"),
    Index("jobs_by_lease", "state", "lease_until"),
    Index("jobs_by_volume", "volume_id"),
    Index("jobs_by_dependency", "depends_on"),
    Index("jobs_by_end", "ended_at"),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("removed_at", Double, nullable=False),
    Column("cleared", Integer, nullable=False, default=0),
    Index("tombstones_by_cleared", "cleared"),
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

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("max_bytes", BigInteger),
    Column("max_open_jobs", Integer),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", Document, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("key_id", String(64), nullable=False),
    Column("expires_at", Double, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("project_id", String(64)),
    Column("actor", String(200), nullable=False),
    Column("action", String(100), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("outcome", Integer, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("audit_by_project", "project_id", "sequence"),
)

requests = Table(
    "requests",
    metadata,
    Column("project_id", String(64), primary_key=True),
    Column("address", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("ids", Document, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("requests_by_age", "created_at"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("length", BigInteger),
    Column("received", BigInteger, nullable=False, default=0),
    Column("objects", Integer, nullable=False, default=0),
    Column("volume_id", String(64)),
    Column("facts", Document, nullable=False),
    Column("revision", Integer, nullable=False, default=0),
    Index("uploads_by_expiry", "state", "expires_at"),
)

upload_objects = Table(
    "upload_objects",
    metadata,
    Column("upload_id", String(64), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
)

dicom_series = Table(
    "dicom_series",
    metadata,
    Column("volume_id", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("study", String(64), nullable=False),
    Column("series", String(64), nullable=False),
    Column("modality", String(16), nullable=False),
    Index("dicom_series_by_study", "project_id", "study", "volume_id"),
    Index("dicom_series_by_series", "project_id", "series"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("url", String, nullable=False),
    Column("secret", String(100), nullable=False),
    Column("events", Document, nullable=False),
    Column("created_at", Double, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("webhook_id", String(64), nullable=False),
    Column("document", Document, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("next_at", Double),
    Column("tries", Integer, nullable=False, default=0),
    Column("tried_at", Double),
    Column("status", Integer),
    Column("error", String(300)),
    Index("deliveries_by_time", "next_at"),
    Index("deliveries_by_webhook", "webhook_id", "id"),
)


@event.listens_for(projects, "after_create")
def _first_project(target: Any, connection: Connection, **options: Any) -> None:
    connection.execute(projects.insert().values(id=DEFAULT_PROJECT, name=DEFAULT_PROJECT, created_at=0.0))


SCHEDULING = frozenset({"not_before", "rung_at", "rings", "told", "changed_at"})
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
