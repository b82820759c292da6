"""A scan on disk as one file that can be sent: a folder becomes an uncompressed zip, streamed to disk."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NothingToSend(Exception):
    """The path holds no scan. `str(error)` names the cause and the cure."""


def refuse_missing(scan: Path) -> None:
    """Raise NothingToSend for a scan that is not there."""
    if not scan.exists():
        raise NothingToSend(f"{scan}: no such file or folder; give the path of a scan")


@contextmanager
def sendable(scan: Path) -> Iterator[Path]:
    """The scan as one file: itself, or for a folder (DICOM, OME-Zarr) a zip that is removed afterwards."""
    refuse_missing(scan)
    if scan.is_file():
        yield scan
        return
    members = sorted(path for path in scan.rglob("*") if path.is_file() and not path.is_symlink())
    if not members:
        raise NothingToSend(f"{scan}: the folder is empty; give a DICOM or OME-Zarr folder, or a file")
    with tempfile.TemporaryDirectory(prefix="tomotrain-") as folder:
        packed = Path(folder) / f"{scan.resolve().name}.zip"
        _pack(scan, members, packed)
        yield packed


def _pack(root: Path, members: list[Path], target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in members:
            archive.write(path, path.relative_to(root).as_posix())
