"""A job's parameters against the JSON Schema (2020-12) that its kind announces."""

from __future__ import annotations

import copy
from typing import Any

from jsonschema import Draft202012Validator

from storage.errors import InvalidParameters


def checked(parameters: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the schema's defaults filled in. Raises InvalidParameters naming every fault."""
    filled = with_defaults(parameters, schema)
    faults = sorted(Draft202012Validator(schema).iter_errors(filled), key=lambda fault: list(fault.path))
    if faults:
        raise InvalidParameters([(_pointer(list(fault.absolute_path)), fault.message) for fault in faults])
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


def _pointer(path: list[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
