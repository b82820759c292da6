"""`tomotrain backup` and `tomotrain restore`: everything that persists, kept elsewhere, and brought back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.commands.common import AsJson, BadOption, DataRoot, errors
from service.commands.inside import inside
from service.settings import ServiceSettings
from service.terminal import pairs, words
from storage.backup import back_up, verify
from storage.backup_manifest import Backup, BackupError
from storage.errors import CatalogueUnavailable, StorageFull
from storage.recovery import restore as bring_back

Place = Annotated[Path, typer.Argument(help="A new folder, on another disk best; with --verify, a backup.")]
Source = Annotated[Path, typer.Argument(help="The folder that `tomotrain backup` made.")]
Root = Annotated[Path, typer.Option("--data-root", help="An empty folder, for everything.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read a backup again and compare every byte.")]


def backup(target: Place, check: Verify = False, root: DataRoot = None, as_json: AsJson = False) -> None:
    """Copy catalogue, volumes and results, while the service runs; or prove a copy with --verify."""
    if check:
        _verified(target, as_json)
        return
    settings = inside(root)
    try:
        with errors.status("Copying and comparing"):
            made = back_up(settings.catalogue_url, settings.data_root, target.absolute())
    except (BackupError, CatalogueUnavailable, StorageFull, OSError) as error:
        raise BadOption(str(error)) from error
    _show({**_facts(made), "target": str(target)}, as_json)
    if made.left_out:
        raise typer.Exit(1)


def restore(source: Source, root: Root, as_json: AsJson = False) -> None:
    """Make a data root of a backup; where TOMOTRAIN_DB_URL is set, with the catalogue in that database."""
    settings = ServiceSettings(data_root=root.absolute())
    try:
        with errors.status("Copying and comparing"):
            found, mended = bring_back(source.absolute(), settings.data_root, settings.db_url)
    except (BackupError, CatalogueUnavailable, StorageFull, OSError) as error:
        raise BadOption(str(error)) from error
    facts = {
        **_facts(found),
        "jobs_queued_again": mended.queued,
        "jobs_cancelled": mended.cancelled,
        "uploads_to_be_sent_anew": mended.uploads,
        "volumes_quarantined": list(mended.quarantined),
    }
    _show(facts, as_json)


def _verified(source: Path, as_json: bool) -> None:
    try:
        with errors.status("Reading"):
            wrong = verify(source.absolute())
            found = Backup.read(source.absolute())
    except (BackupError, OSError) as error:
        raise BadOption(str(error)) from error
    _show({**_facts(found), "wrong": wrong}, as_json)
    if wrong:
        raise typer.Exit(1)


def _facts(made: Backup) -> dict[str, Any]:
    """What is told of a backup."""
    return {
        "created_at": made.created_at,
        "files": len(made.files),
        "bytes": made.size,
        "digest": made.digest,
        "left_out": [f"{each.path}: {each.reason}" for each in made.left_out],
    }


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    lines = [(name.replace("_", " "), _told(value)) for name, value in facts.items() if value != []]
    Console().print(pairs("Backup", lines))
    for name in ("left_out", "wrong"):
        for line in facts.get(name, []):
            errors.print(words(f"{name.replace('_', ' ')}: {line}"))


def _told(value: Any) -> str:
    return f"{len(value)}" if isinstance(value, list) else str(value)
