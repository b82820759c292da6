"""`tomotrain gc`: remove what belongs to nobody, while the service runs or not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from service.commands.common import AsJson, DataRoot, errors
from service.commands.inside import opened
from service.terminal import pairs
from storage.garbage import collect, find

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]
Hours = Annotated[float, typer.Option(min=1.0, help="Remove only what nobody has touched for so many hours.")]


def gc(
    dry_run: DryRun = False, older_than_hours: Hours = 24.0, root: DataRoot = None, as_json: AsJson = False
) -> None:
    """Remove files that no volume, job or upload refers to."""
    with opened(root) as (settings, catalogue), errors.status("Looking"):
        act = find if dry_run else collect
        found = act(settings.data_root, catalogue, older_than_s=older_than_hours * 3600)
    size = sum(orphan.size for orphan in found)
    if as_json:
        listed = [asdict(orphan) for orphan in found]
        print(json.dumps({"removed": not dry_run, "count": len(found), "bytes": size, "orphans": listed}))
        return
    what = "Would be removed" if dry_run else "Removed"
    title = f"{what}: {len(found)} orphans, {size / 1e6:.1f} MB"
    if found:
        Console().print(pairs(title, [(orphan.path, orphan.reason) for orphan in found]))
    else:
        Console().print("No orphans.")
