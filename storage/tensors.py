"""Arrays and a JSON document in one safetensors file: the document stands in its metadata. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Array = NDArray[Any]


def packed(tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> bytes:
    """The file's bytes; equal for equal content. Raises ValueError where the manifest is not finite JSON."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    content: bytes = save(arrays, {"manifest": json.dumps(manifest, sort_keys=True, allow_nan=False)})
    return content


def unpacked(content: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """What was packed. Raises ValueError for bytes that are no such file."""
    try:
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_size])
        return load(content), json.loads(header["__metadata__"]["manifest"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no safetensors file with a manifest ({error})") from error
