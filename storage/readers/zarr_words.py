"""Words of somebody else's Zarr metadata that an error may repeat: others may be anybody's name."""

from __future__ import annotations

import re
from types import NoneType
from typing import Any

CODEC = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
VERSION = re.compile(r"\d{1,2}\.\d{1,2}(\.\d{1,2})?(-?(dev|rc)\d{0,2})?")
WORDS = frozenset(
    {"bool", "string", "complex64", "complex128", "r8", "r16", "null_terminated_bytes", "fixed_length_utf32",
     "numpy.datetime64", "numpy.timedelta64", "variable_length_bytes", "struct", "|O", "rectangular",
     "rectilinear", "default", "v2", "suffix", "rotation", "affine", "sequence", "mapAxis", "displacements",
     "coordinates", "byDimension", "bijection", "inverseOf", "scale", "translation", "identity"}
)  # fmt: skip
"""Names of Zarr's and OME-Zarr's own that we know and do not read."""


def known(word: Any) -> str:
    """A word of the metadata that may be told: others may be anybody's name, and are not repeated."""
    return repr(word) if isinstance(word, str) and word in WORDS else "of another kind"


def codec_name(name: Any) -> str:
    """A codec's name, which a program gave and no person has; nothing else that may stand in its place."""
    return repr(name) if isinstance(name, str) and CODEC.fullmatch(name) else "of another kind"


def numeric(value: Any) -> str:
    """A value, where it holds nothing but numbers."""
    values = value if isinstance(value, list) else [value]
    return str(value) if all(type(each) in (int, float, NoneType) for each in values) else "no number"


def version_of(value: Any) -> str | None:
    """The version of OME-Zarr, where it is one."""
    return value if isinstance(value, str) and VERSION.fullmatch(value) else None
