"""Objects of a volume's store as they are, compared with the manifest before they are handed on."""

from __future__ import annotations

import hashlib

from storage.errors import CorruptVolume
from storage.volume import Volume


def sound_object(volume: Volume, key: str) -> bytes:
    """An object's content. Raises CorruptVolume where it is not the one that the manifest names, or gone."""
    try:
        content = volume.key_path(key).read_bytes()
    except FileNotFoundError:
        raise CorruptVolume(key, "the object is missing") from None
    if hashlib.sha256(content).hexdigest() != volume.manifest.objects[key].sha256:
        raise CorruptVolume(key, "the object is not the one that the manifest names")
    return content
