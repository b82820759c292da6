"""Addresses as they may be kept and told: without a sender's UIDs, which lead to patients in its archive."""

from __future__ import annotations

DICOMWEB = "/dicomweb"
_WORDS = frozenset(
    {
        "",
        "dicomweb",
        "studies",
        "series",
        "instances",
        "metadata",
        "frames",
        "rendered",
        "thumbnail",
        "bulkdata",
    }
)


def shown_path(path: str) -> str:
    """The path of an address; below `/dicomweb` with `{uid}` for whatever is no word of PS3.18."""
    if not path.startswith(f"{DICOMWEB}/"):
        return path
    return "/".join(step if step in _WORDS else "{uid}" for step in path.split("/"))
