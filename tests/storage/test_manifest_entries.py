"""A manifest from elsewhere: what is no entry is refused before anybody relies on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from storage.errors import CorruptVolume
from storage.manifest import NAME, Manifest


def written(folder: Path, key: str, entry: dict[str, Any]) -> None:
    """A manifest of one object, with the digest that it should have."""
    line = f"{entry['sha256']}  {entry['size']}  {entry['seal']}  {key}\n"
    digest = "sha256:" + hashlib.sha256(line.encode(errors="replace")).hexdigest()
    document = {"version": 1, "digest": digest, "objects": {key: entry}}
    (folder / NAME).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("a", {"size": "9"}),
        ("a", {"size": None}),
        ("a", {"sha256": None}),
        ("a", {"seal": "7"}),
        ("\ud800", {}),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path: Path, key: str, changed: dict[str, Any]) -> None:
    entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "seal": None}
    written(tmp_path, "a", entry)
    assert Manifest.read(tmp_path).size == 1
    written(tmp_path, key, {**entry, **changed})
    with pytest.raises(CorruptVolume, match="cannot be read"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [None, "[" * 100_000, "{", "9"])
def test_what_cannot_be_read_is_told_without_saying_where_it_lies(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content)
    with pytest.raises(CorruptVolume, match=r"'manifest.json': the manifest cannot be read: .+") as raised:
        Manifest.read(tmp_path)
    assert str(tmp_path) not in str(raised.value)
