"""JSON Schemas as people and forms want them, and pointers into what they describe."""

from __future__ import annotations

from typing import Any


def choices(table: Any) -> dict[str, Any]:
    """The names in a table, as JSON Schema shows them; the table's owner refuses all others."""
    return {"enum": list(table)}


def of_types(schema: dict[str, Any]) -> None:
    """Make alternatives that are single types one schema: what refuses a value then names its limit, which
    `anyOf` does not.
    """
    parts = schema.pop("anyOf")
    for part in parts:
        schema |= {name: limit for name, limit in part.items() if name != "type"}
    schema["type"] = [part["type"] for part in parts]


def pointer(*steps: int | str) -> str:
    """Where something stands in a document (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
