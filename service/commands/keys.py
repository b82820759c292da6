"""`tomotrain keys`: API keys and projects, by whoever may write to the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.commands.common import BadOption, DataRoot, data_root, errors
from service.schemas import timestamp
from service.settings import ServiceSettings
from service.terminal import words
from storage.access import WORKING, Access, scopes_of
from storage.database import Database
from storage.tables import DEFAULT_PROJECT

_PROJECT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

keys = typer.Typer(no_args_is_help=True, help="API keys and projects.")

InProject = Annotated[str, typer.Option("--project", help="The project that the key opens.")]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: InProject = DEFAULT_PROJECT,
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do, once for each; by default all work on scans.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="For so many days; by default for good.", min=0.001)
    ] = None,
    root: DataRoot = None,
) -> None:
    """Make an API key, and print it: it is never shown again."""
    with _access(root) as access:
        made = access.make_key(name, scopes_of(scope) if scope else WORKING, project_id=project, days=days)
    errors.print(words(f"Key {made.key.id} for project {project}; it is never shown again:"))
    print(made.secret)


@keys.command("list")
def show(root: DataRoot = None) -> None:
    """List all keys of all projects, without their secrets."""
    table = Table("id", "name", "project", "scopes", "made", "until", "revoked")
    with _access(root) as access:
        for key in access.all_keys():
            times = (timestamp(moment) or "" for moment in (key.created_at, key.expires_at, key.revoked_at))
            table.add_row(key.id, key.name, key.project_id, " ".join(sorted(key.scopes)), *times)
    Console().print(table)


@keys.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id.")], root: DataRoot = None) -> None:
    """End a key, and every session that it opened."""
    with _access(root) as access:
        access.revoke(key_id)
    errors.print(words(f"Key {key_id} has ended; services take it for two seconds more at most."))


@keys.command("project")
def project(
    project_id: Annotated[str, typer.Argument(help="The project's id.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default its id.")] = None,
    max_gb: Annotated[float | None, typer.Option(help="Most gigabytes of scans.", min=0)] = None,
    max_open_jobs: Annotated[int | None, typer.Option(help="Most jobs that have not ended.", min=0)] = None,
    root: DataRoot = None,
) -> None:
    """Make a project, or change its name and limits."""
    if not _PROJECT_ID.fullmatch(project_id):
        raise BadOption(
            f"{project_id!r} is no project's id; take small letters, digits and hyphens, up to 63"
        )
    most = None if max_gb is None else int(max_gb * 1e9)
    with _access(root) as access:
        made = access.put_project(project_id, name=name, max_bytes=most, max_open_jobs=max_open_jobs)
    errors.print(words(f"Project {made.id}: `tomotrain keys create NAME --project {made.id}` makes a key."))


@contextmanager
def _access(root: DataRoot) -> Iterator[Access]:
    """On the catalogue of the environment, or of a data root."""
    settings = ServiceSettings(data_root=data_root(root))
    database = Database.open(settings.catalogue_url)
    try:
        yield Access(database)
    finally:
        database.close()
