"""How to speak of a file that somebody sent: names of files often hold a patient's name or number.

A name is told only where it is made of words that say nothing of a person, and of one number of a slice at
most; a folder's name never is. Any other file is told by its place in the upload.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from storage.errors import UnsafeArchive

WORDS = "slice|sl|image|img|im|instance|frame|i|z|scan|volume|report|head|chest|abdomen|ct|mr|pt|us"
ENDINGS = "dcm|dicom|ima|nii|gz|nrrd|zarr|ome|json|txt|xml|zip|tar"
HARMLESS = re.compile(rf"(?:(?:{WORDS})?[-_ ]?\d{{0,6}}|[a-z])(?:\.(?:{ENDINGS}))*", re.IGNORECASE)
LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "DICOMDIR", "README", "README.txt", "LICENSE"})
ZARR = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
ENDING = re.compile(rf"(?:\.(?:{ENDINGS}))+$", re.IGNORECASE)
HIDDEN = "…"


def is_harmless(name: str) -> bool:
    """Whether a file's name, without folders, says nothing of a person."""
    if name in LITTER | ZARR:
        return True
    stem = ENDING.sub("", name)
    return HARMLESS.fullmatch(name) is not None and stem != "" and not stem.isdigit()


def without_identity(name: str, otherwise: str) -> str:
    """A file's name if it is harmless, else `otherwise` with the endings that say what is in the file."""
    if is_harmless(name):
        return name
    ending = ENDING.search(name)
    return otherwise + (ending[0].lower() if ending else "")


def told(path: str, place: int) -> str:
    """How to speak of the file at a path in an upload, the `place`-th of its files (from 1)."""
    folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
    if not is_harmless(name):
        return f"file {place}"
    return f"{name!r}" if folder == PurePosixPath() else f"file {place} ({name!r})"


def masked(path: str) -> str:
    """A path with the shape that it has, and nothing else of it but what is harmless: `../…/slice_1.dcm`."""
    parts = re.split(r"([/\\:])", path)
    return "".join(part if _is_plain(part) else HIDDEN for part in parts)


def check_inside(name: str) -> None:
    """Raise UnsafeArchive when a relative path could leave the folder that it is in."""
    reason = None
    if "\0" in name:
        reason = "it contains a NUL"
    elif "\\" in name:
        reason = "it contains a backslash"
    elif name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        reason = "it is absolute"
    elif ".." in PurePosixPath(name).parts:
        reason = "it climbs out with '..'"
    if reason:
        raise UnsafeArchive(masked(name), reason)


def _is_plain(part: str) -> bool:
    return part in {"", ".", "..", "/", "\\", ":"} or is_harmless(part)
