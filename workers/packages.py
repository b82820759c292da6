"""What a result was computed with."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import models

PACKAGES = ("tomotrain", "numpy", "torch", "zarr")


def versions() -> dict[str, str]:
    """Of Python and of the packages that determine a result's bits."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def program() -> dict[str, str]:
    """The versions, and a digest of this program's own code: it may change without its version."""
    return {**versions(), "code": _code()}


@cache
def _code() -> str:
    """sha-256 of all modules of the models and of the workers, as this process found them."""
    found = hashlib.sha256()
    for root in (*map(Path, models.__path__), Path(__file__).parent):
        for path in sorted(root.rglob("*.py")):
            found.update(f"{path.relative_to(root.parent)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()
