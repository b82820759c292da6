"""Scans of every format behind one protocol: `identify` what was sent, `open_scan` to read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage.dicom_uids import NewUid
from storage.errors import EmptyUpload, InvalidScan, UnsupportedScan
from storage.readers.archives import is_zip, open_tree
from storage.readers.base import Limits, Reader, Scan
from storage.readers.dicom import DicomReader
from storage.readers.nifti import NiftiReader
from storage.readers.nrrd import NrrdReader
from storage.readers.zarr import ZarrReader

READERS: tuple[Reader, ...] = (
    NiftiReader(),
    NrrdReader(),
    ZarrReader(),
    DicomReader(),
)
"""In the order of asking. DICOM is last: it also answers for folders and archives of nothing known."""

DEFAULT_LIMITS = Limits()


def readers_replacing(new_uid: NewUid) -> tuple[Reader, ...]:
    """The readers, of which DICOM's keeps UIDs as they are replaced."""
    return (*READERS[:-1], DicomReader(new_uid))


def identify(path: Path, limits: Limits = DEFAULT_LIMITS) -> str:
    """The name of the format, by content alone. Cheap: magic bytes, and an archive's central directory.

    Raises EmptyUpload, UnsupportedScan, UnsafeArchive, ScanTooLarge or InvalidScan.
    """
    return _reader(path, limits).name


def open_scan(path: Path, limits: Limits = DEFAULT_LIMITS, readers: Sequence[Reader] = READERS) -> Scan:
    """The scan at `path`: a file, a zip archive or a folder. See `Reader.open` for what it raises."""
    return _reader(path, limits, readers).open(path, limits)


def _check_archive(path: Path, limits: Limits) -> None:
    with open_tree(path, limits) as tree:
        if not tree.members:
            raise InvalidScan("the archive is empty: there are no slices in it")


def _reader(path: Path, limits: Limits, readers: Sequence[Reader] = READERS) -> Reader:
    if path.is_file() and path.stat().st_size == 0:
        raise EmptyUpload
    if is_zip(path):
        _check_archive(path, limits)
    for reader in readers:
        if reader.recognises(path):
            return reader
    formats = "; ".join(reader.accepts for reader in READERS)
    raise UnsupportedScan(f"the content is none of the formats that are read here: {formats}")
