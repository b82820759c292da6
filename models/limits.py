"""Limits of settings: what is beyond them is a slip, and would take a worker down."""

from __future__ import annotations

from typing import Any

from models.errors import InvalidConfig

MOST_ENTRIES = 8
"""Of a setting that is a list."""


def refuse_outside(config: Any, **limits: tuple[float, float]) -> None:
    """Raise InvalidConfig for a setting outside of its (least, most): a number, or one of a list of them."""
    for setting, (least, most) in limits.items():
        value = getattr(config, setting)
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > MOST_ENTRIES:
            raise InvalidConfig(setting, value, f"a list of at most {MOST_ENTRIES}")
        if not all(least <= entry <= most for entry in entries):
            raise InvalidConfig(setting, value, f"between {least:,} and {most:,}")
