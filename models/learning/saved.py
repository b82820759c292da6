"""What is saved as arrays and a manifest, and whether the two belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from models.errors import InvalidShape
from models.types import Array


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over all names, types, shapes and values."""
    seen = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        seen.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        seen.update(array.tobytes())
    return seen.hexdigest()


def refuse_mixed(tensors: Mapping[str, Array], manifest: Mapping[str, Any], what: str) -> None:
    """Raise InvalidShape for tensors that are not those whose `digest` the manifest has."""
    if digest(tensors) != manifest.get("digest"):
        raise InvalidShape(f"the tensors and the manifest of {what} do not belong together: two are mixed")


def under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors as parts of something larger: `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What `under` gave, by its names before."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
