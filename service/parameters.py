"""A job's parameters against the JSON Schema (2020-12) that its kind announces."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator

from storage.errors import MOST_PROBLEMS, InvalidParameters

Problem = tuple[str, str]
"""A JSON pointer, and what is wrong there."""
Path = tuple[str | int, ...]


def checked(parameters: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the schema's defaults filled in. Raises InvalidParameters naming faults.

    Lists that are too long or too short are told alone: nothing in them is looked at. Of other faults as many
    are looked for as are told.
    """
    if lengths := list(_lengths(parameters, schema)):
        raise InvalidParameters(lengths)
    filled = with_defaults(parameters, schema)
    if faults := _faults(filled, schema):
        raise InvalidParameters(faults)
    return filled


def with_defaults(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which absent properties have their defaults, in nested objects too."""
    filled = copy.deepcopy(value)
    for name, part in schema.get("properties", {}).items():
        if "default" in part:
            filled.setdefault(name, copy.deepcopy(part["default"]))
        if isinstance(filled.get(name), dict):
            filled[name] = with_defaults(filled[name], part)
    return filled


def _lengths(value: Mapping[str, Any], schema: Mapping[str, Any], path: Path = ()) -> Iterator[Problem]:
    """Lists among properties, in nested objects too, that do not have as many items as they must."""
    for name, part in schema.get("properties", {}).items():
        inner, here = value.get(name), (*path, name)
        if isinstance(inner, dict):
            yield from _lengths(inner, part, here)
        elif isinstance(inner, list):
            least, most = part.get("minItems", 0), part.get("maxItems", len(inner))
            if len(inner) > most:
                yield _pointer(here), f"{len(inner):,} items; {most:,} at most"
            elif len(inner) < least:
                yield _pointer(here), f"{len(inner):,} items; {least:,} at least"


def _faults(value: Any, schema: dict[str, Any]) -> list[Problem]:
    """The first faults, by their places; where there are more, the last one says so."""
    found = list(islice(Draft202012Validator(schema).iter_errors(value), MOST_PROBLEMS))
    told = [
        (_pointer(tuple(fault.absolute_path)), fault.message)
        for fault in sorted(found[: MOST_PROBLEMS - 1], key=lambda fault: list(fault.path))
    ]
    if len(found) == MOST_PROBLEMS:
        told.append(("", f"more faults than the {len(told)} that are told"))
    return told


def _pointer(path: Path) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
