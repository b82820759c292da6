"""The objects of a Zarr that is sent one by one: what their keys may be, and the manifest of them all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from storage.upload_errors import BadKey, UploadIncomplete

MOST_OBJECTS = 200_000
MOST_IN_MANIFEST = 50_000
"""A manifest of more would take a hundred megabytes to read; its digest is enough."""
LONGEST_KEY = 256
_NUMBER = "(?:0|[1-9][0-9]{0,18})"
_KEY = re.compile(rf"zarr\.json|(?:{_NUMBER}/)?(?:zarr\.json|c(?:/{_NUMBER}){{1,5}})")


@dataclass(frozen=True)
class SentObject:
    """One object: its size in bytes and its sha-256 (hex)."""

    size: int
    sha256: str


Objects = Mapping[str, SentObject]


def check_key(key: str) -> None:
    """Raise BadKey for what is no object of a Zarr v3 array, or of a group of levels 0, 1, 2, ..."""
    if len(key) > LONGEST_KEY or _KEY.fullmatch(key) is None:
        raise BadKey(
            key, "write zarr.json, <level>/zarr.json or [<level>/]c/<i>/<j>/..., of decimal numbers (Zarr v3)"
        )


def digest_of(objects: Objects) -> str:
    """sha-256 (hex) of the lines `<sha-256>  <size>  <key>`, sorted by key."""
    lines = (f"{sent.sha256}  {sent.size}  {key}\n" for key, sent in sorted(objects.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_complete(upload_id: str, arrived: Objects, manifest: Objects) -> None:
    """Raise UploadIncomplete unless exactly the manifest's objects have arrived."""
    missing = sorted(manifest.keys() - arrived.keys())
    unexpected = sorted(arrived.keys() - manifest.keys())
    different = sorted(key for key in manifest.keys() & arrived.keys() if manifest[key] != arrived[key])
    if not (missing or unexpected or different):
        return
    detail = (
        f"{len(missing)} objects of the manifest are missing, {len(different)} differ from it, "
        f"{len(unexpected)} are not in it; send what is missing"
    )
    raise UploadIncomplete(upload_id, detail, missing=missing, different=different, unexpected=unexpected)


def check_digest(upload_id: str, arrived: Objects, digest: str) -> None:
    """Raise UploadIncomplete unless the manifest of what has arrived has this sha-256 (hex)."""
    found = digest_of(arrived)
    if found != digest.lower():
        raise UploadIncomplete(
            upload_id,
            f"the manifest of the {len(arrived)} objects that arrived has the sha-256 {found}, not {digest}",
        )
