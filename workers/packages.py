"""What a result was computed with."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("tomotrain", "numpy", "torch", "zarr")


def versions() -> dict[str, str]:
    """Of Python and of the packages that determine a result's bits."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
