"""Scans that the service reads from where they lie: only below folders that the settings name.

    file:///srv/scans/head.nii.gz

Links and `..` are followed first and judged by where they lead. Nothing is asked over a network: what a URL
of another scheme names is refused, and S3 is not built in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from service.errors import ApiError
from storage.upload_errors import SourceNotAllowed
from storage.uploads import Upload

PIECE_BYTES = 1 << 20


def allowed_path(source: str, roots: tuple[str, ...]) -> Path:
    """The path that a source names, all links followed.

    Raises SourceNotAllowed for all that lies elsewhere, whether it is there or not; ApiError
    `source-not-built-in` for S3 below a prefix that is allowed.
    """
    try:
        address = urlsplit(source)
    except ValueError:
        raise SourceNotAllowed from None
    if address.scheme == "s3":
        _refuse_s3(source, roots)
    if address.scheme != "file" or address.netloc not in ("", "localhost"):
        raise SourceNotAllowed
    if address.query or address.fragment:
        raise SourceNotAllowed
    named = unquote_to_bytes(address.path)
    if b"\0" in named or not named.startswith(b"/"):
        raise SourceNotAllowed
    return _inside(Path(os.fsdecode(named)), roots)


def read_into(path: Path, upload: Upload) -> None:
    """Copy a file's bytes. Raises ApiError `source-not-found`, and what the upload raises."""
    for piece in _pieces(path):
        upload.write(piece)


def size_of(path: Path) -> int:
    """Bytes of a regular file. Raises ApiError `source-not-found`."""
    try:
        facts = path.stat(follow_symlinks=False)
    except OSError as error:
        raise _not_found(error.strerror or "it cannot be read") from None
    if not stat.S_ISREG(facts.st_mode):
        raise _not_found("it is no regular file; name a file, or a zip of a folder")
    return facts.st_size


def _inside(path: Path, roots: tuple[str, ...]) -> Path:
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # a name that is too long, or links in a circle
        raise SourceNotAllowed from None
    folders = [Path(root).resolve() for root in roots if not root.startswith("s3://")]
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise SourceNotAllowed
    return resolved


def _refuse_s3(source: str, roots: tuple[str, ...]) -> None:
    prefixes = [root.rstrip("/") + "/" for root in roots if root.startswith("s3://")]
    if ".." in source.split("/") or not any(source.startswith(prefix) for prefix in prefixes):
        raise SourceNotAllowed
    raise ApiError("source-not-built-in", "imports from S3 are not built in yet; send the scan, or mount it")


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _not_found(error.strerror or "it cannot be read") from None
    with os.fdopen(descriptor, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _not_found(reason: str) -> ApiError:
    return ApiError("source-not-found", f"the source cannot be imported: {reason}")
