"""Who may do what: projects, API keys and the sessions of browsers.

A key is `tt_<id>_<secret>`, its secret 256 random bits: the catalogue keeps its SHA-256 alone, which is
enough for what nobody can guess. A key is shown once, where it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, update

from storage.clock import now
from storage.database import Database
from storage.errors import MissingAccessKey, MissingProject, UnknownScope
from storage.tables import DEFAULT_PROJECT, access_keys, projects, sessions

_KEY = re.compile(r"tt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"").hexdigest()


class Scope(StrEnum):
    """What a key lets its holder do."""

    VOLUMES_READ = "volumes:read"
    VOLUMES_WRITE = "volumes:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    AUDIT_READ = "audit:read"
    OPERATIONS_READ = "operations:read"
    ADMIN = "admin"


EVERYTHING = frozenset(Scope)
WORKING = frozenset({Scope.VOLUMES_READ, Scope.VOLUMES_WRITE, Scope.JOBS_READ, Scope.JOBS_WRITE})
"""What hospital tooling needs."""


@dataclass(frozen=True)
class AccessKey:
    """A key without its secret. Times are seconds since 1970 (UTC)."""

    id: str
    project_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class MadeKey:
    """A key as it is shown once."""

    key: AccessKey
    secret: str


@dataclass(frozen=True)
class Project:
    """Rows of one project are nobody else's. Without `max_bytes` or `max_open_jobs` there is no limit."""

    id: str
    name: str
    created_at: float
    max_bytes: int | None = None
    max_open_jobs: int | None = None


class Access:
    """Projects, keys and sessions. Raises CatalogueUnavailable while the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make_key(
        self,
        name: str,
        scopes: Collection[Scope] = WORKING,
        *,
        project_id: str = DEFAULT_PROJECT,
        days: float | None = None,
    ) -> MadeKey:
        """A new key for a project, good for so many days (None: for good). Raises MissingProject."""
        with self._database.writing() as connection:
            _project(connection, project_id)
            return _make(connection, name, scopes, project_id, days)

    def first_key(self, name: str) -> MadeKey | None:
        """A key for everything, where there has never been any; None where there was."""
        with self._database.writing() as connection:
            connection.execute(
                select(projects.c.id).where(projects.c.id == DEFAULT_PROJECT).with_for_update()
            )
            if connection.execute(select(func.count()).select_from(access_keys)).scalar_one():
                return None
            return _make(connection, name, EVERYTHING, DEFAULT_PROJECT, None)

    def key_of(self, presented: str) -> AccessKey | None:
        """The valid key that was presented; None for any other text."""
        match = _KEY.fullmatch(presented)
        key_id, digest = (match[1], _hash(presented)) if match else ("", _NOBODY)
        with self._database.reading() as connection:
            row = connection.execute(select(access_keys).where(access_keys.c.id == key_id, *_valid())).first()
        known = _NOBODY[::-1] if row is None else row.hash
        return _key(row) if hmac.compare_digest(known, digest) and row is not None else None

    def all_keys(self, project_id: str | None = None) -> list[AccessKey]:
        """All keys, of one project or of all, revoked ones too, oldest first."""
        chosen = select(access_keys).order_by(access_keys.c.created_at, access_keys.c.id)
        if project_id is not None:
            chosen = chosen.where(access_keys.c.project_id == project_id)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(chosen)]

    def revoke(self, key_id: str, *, project_id: str | None = None) -> AccessKey:
        """End a key at once, and every session that it opened. Raises MissingAccessKey."""
        here = [access_keys.c.id == key_id]
        if project_id is not None:
            here.append(access_keys.c.project_id == project_id)
        with self._database.writing() as connection:
            still = func.coalesce(access_keys.c.revoked_at, now())
            row = connection.execute(
                update(access_keys).where(*here).values(revoked_at=still).returning(access_keys)
            ).first()
            if row is None:
                raise MissingAccessKey(key_id)
            connection.execute(delete(sessions).where(sessions.c.key_id == key_id))
        return _key(row)

    # Browsers

    def open_session(self, key: AccessKey, seconds: float) -> str:
        """A browser's session in the place of a key: a secret that only the browser holds."""
        secret = secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now()))
            connection.execute(
                insert(sessions).values(hash=_hash(secret), key_id=key.id, expires_at=now() + seconds)
            )
        return secret

    def key_of_session(self, secret: str) -> AccessKey | None:
        """The valid key that opened a session which is still open."""
        statement = (
            select(access_keys)
            .join(sessions, sessions.c.key_id == access_keys.c.id)
            .where(sessions.c.hash == _hash(secret), sessions.c.expires_at > now(), *_valid())
        )
        with self._database.reading() as connection:
            row = connection.execute(statement).first()
        return None if row is None else _key(row)

    def close_session(self, secret: str) -> None:
        """End a session; harmless where it has ended."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.hash == _hash(secret)))

    # Projects

    def projects(self) -> list[Project]:
        """All projects, by id."""
        with self._database.reading() as connection:
            return [
                Project(**row._mapping)
                for row in connection.execute(select(projects).order_by(projects.c.id))
            ]

    def project(self, project_id: str) -> Project:
        """One project. Raises MissingProject."""
        with self._database.reading() as connection:
            return _project(connection, project_id)

    def put_project(
        self,
        project_id: str,
        *,
        name: str | None = None,
        max_bytes: int | None = None,
        max_open_jobs: int | None = None,
    ) -> Project:
        """Make a project, or change its name and limits."""
        values: dict[str, Any] = {
            "name": name or project_id,
            "max_bytes": max_bytes,
            "max_open_jobs": max_open_jobs,
        }
        with self._database.writing() as connection:
            changed = connection.execute(update(projects).where(projects.c.id == project_id).values(**values))
            if not changed.rowcount:
                connection.execute(insert(projects).values(id=project_id, created_at=now(), **values))
            return _project(connection, project_id)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes of these names. Raises UnknownScope."""
    wanted = frozenset(names)
    if unknown := sorted(wanted - set(Scope)):
        raise UnknownScope(unknown[0], sorted(Scope))
    return frozenset(map(Scope, wanted))


def _make(
    connection: Connection, name: str, scopes: Collection[Scope], project_id: str, days: float | None
) -> MadeKey:
    key_id = secrets.token_hex(8)
    secret = f"tt_{key_id}_{secrets.token_urlsafe(32)}"
    row = connection.execute(
        insert(access_keys)
        .values(
            id=key_id,
            project_id=project_id,
            name=name,
            hash=_hash(secret),
            scopes=sorted(scopes),
            created_at=now(),
            expires_at=None if days is None else now() + days * 86_400.0,
        )
        .returning(access_keys)
    ).one()
    return MadeKey(_key(row), secret)


def _valid() -> list[ColumnElement[bool]]:
    alive = or_(access_keys.c.expires_at.is_(None), access_keys.c.expires_at > now())
    return [access_keys.c.revoked_at.is_(None), alive]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _project(connection: Connection, project_id: str) -> Project:
    row = connection.execute(select(projects).where(projects.c.id == project_id)).first()
    if row is None:
        raise MissingProject(project_id)
    return Project(**row._mapping)


def _key(row: Row[Any]) -> AccessKey:
    facts = {name: value for name, value in row._mapping.items() if name != "hash"}
    return AccessKey(**{**facts, "scopes": frozenset(map(Scope, row.scopes))})
