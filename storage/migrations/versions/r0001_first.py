"""Volumes, jobs, kinds and workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("source_bytes", sa.BigInteger, nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("ingest_job", sa.String(64), nullable=False),
        sa.Column("stored", sa.JSON),
        sa.Column("store", sa.String),
        sa.Column("error", sa.JSON),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_index("volumes_by_ingest_job", "volumes", ["ingest_job"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("volume_id", sa.String(64)),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("progress", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("artifacts", sa.JSON),
        sa.Column("worker", sa.String),
        sa.Column("depends_on", sa.String(64)),
        sa.Column("lease_until", sa.Double),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("labels", sa.JSON),
        sa.Column("not_before", sa.Double),
        sa.Column("rung_at", sa.Double),
        sa.Column("rings", sa.Integer, nullable=False),
    )
    op.create_index("jobs_by_lease", "jobs", ["state", "lease_until"])
    op.create_index("jobs_by_volume", "jobs", ["volume_id"])
    op.create_index("jobs_by_dependency", "jobs", ["depends_on"])
    op.create_table(
        "kinds",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(32), primary_key=True),
        sa.Column("announced_at", sa.Double, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("kinds", sa.JSON, nullable=False),
        sa.Column("last_seen", sa.Double, nullable=False),
    )
