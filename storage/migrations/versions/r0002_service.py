"""Projects, keys, sessions and the audit log; idempotent requests; upload sessions; webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Add columns to volumes and jobs, and the tables of the service."""
    op.add_column("volumes", _project())
    op.create_index("volumes_by_project", "volumes", ["project_id", "id"])
    op.add_column("jobs", _project())
    for column in (
        sa.Column("kind_version", sa.String(32)),
        sa.Column("retry_of", sa.String(64)),
        sa.Column("retried_by", sa.String(64)),
        sa.Column("submitted_by", sa.String(128)),
        sa.Column("trace", sa.String(64)),
        sa.Column("told", sa.Integer, nullable=False, server_default="1"),
        sa.Column("changed_at", sa.Double, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    op.create_index("jobs_by_project", "jobs", ["project_id", "id"])
    op.create_index("jobs_by_queue", "jobs", ["queue", "state", "id", "kind"])
    op.create_index("jobs_by_told", "jobs", ["told", "state"])
    op.create_index("jobs_by_end", "jobs", ["ended_at"])
    _tombstones()
    op.create_index("jobs_by_change", "jobs", ["changed_at", "id"])
    _access()
    _audit()
    _requests()
    _uploads()
    _dicom_series()
    _webhooks()
    op.execute("INSERT INTO projects (id, name, created_at) VALUES ('default', 'default', 0)")


def _project() -> sa.Column[str]:
    return sa.Column("project_id", sa.String(64), nullable=False, server_default="default")


def _tombstones() -> None:
    op.create_table(
        "tombstones",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("removed_at", sa.Double, nullable=False),
        sa.Column("cleared", sa.Integer, nullable=False),
    )
    op.create_index("tombstones_by_cleared", "tombstones", ["cleared"])


def _access() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("max_bytes", sa.BigInteger),
        sa.Column("max_open_jobs", sa.Integer),
    )
    op.create_table(
        "access_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("project_id", sa.String(64)),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("outcome", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("audit_by_project", "audit", ["project_id", "sequence"])


def _requests() -> None:
    op.create_table(
        "requests",
        sa.Column("project_id", sa.String(64), primary_key=True),
        sa.Column("address", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("ids", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("requests_by_age", "requests", ["created_at"])


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("length", sa.BigInteger),
        sa.Column("received", sa.BigInteger, nullable=False),
        sa.Column("objects", sa.Integer, nullable=False),
        sa.Column("volume_id", sa.String(64)),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_index("uploads_by_expiry", "uploads", ["state", "expires_at"])
    op.create_table(
        "upload_objects",
        sa.Column("upload_id", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(256), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )


def _dicom_series() -> None:
    op.create_table(
        "dicom_series",
        sa.Column("volume_id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("series", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
    )
    op.create_index("dicom_series_by_study", "dicom_series", ["project_id", "study", "volume_id"])
    op.create_index("dicom_series_by_series", "dicom_series", ["project_id", "series"])


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("webhook_id", sa.String(64), nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("next_at", sa.Double),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("tried_at", sa.Double),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.String(300)),
    )
    op.create_index("deliveries_by_time", "deliveries", ["next_at"])
    op.create_index("deliveries_by_webhook", "deliveries", ["webhook_id", "id"])
