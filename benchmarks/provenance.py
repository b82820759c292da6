"""Which code a result is of: the commit, whether the tree had changes, the versions, and the time."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workers.packages import versions

UNKNOWN = "unknown"
ADDED = {"spectral_bound": None}
"""Settings that recipes did not always have, with the value by which they do what they did before."""
ROOT = Path(__file__).parent.parent


def provenance() -> dict[str, Any]:
    """As JSON. Ask before a run starts: what is changed while it lasts is not in it."""
    return {
        **commit(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def digest(recipes: Mapping[str, Any]) -> str:
    """Of all settings of recipes, by name: another one says that a recipe has changed.

    Settings of ADDED count where they have another value.
    """
    from models.regressors.settings import settings_of

    told = {name: without_added(settings_of(recipe)) for name, recipe in recipes.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def without_added(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, in tables of them too, but those of ADDED that are as they were."""
    return {
        name: without_added(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in ADDED or value != ADDED[name]
    }


def commit(root: Path = ROOT) -> dict[str, Any]:
    """The commit, and whether files outside of docs (where results lie) differ from it; None: not known."""
    described = _git(root, ("describe", "--always", "--tags", "--abbrev=12"))
    changed = _git(root, ("status", "--porcelain", "--", ".", ":(exclude)docs"))
    if described is None or changed is None:
        return {"commit": UNKNOWN, "dirty": None}
    return {"commit": described, "dirty": bool(changed)}


def _git(root: Path, arguments: Sequence[str]) -> str | None:
    """What git says; None where there is none, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
