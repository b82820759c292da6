"""One DICOM instance that was sent by itself, as by STOW-RS: what it belongs to, by replaced UIDs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from storage.dicom_uids import OF_DICOM, NewUid
from storage.errors import InvalidScan, UnsupportedScan
from storage.readers.archives import SingleFile
from storage.readers.base import Limits
from storage.readers.dicom_instance import PREAMBLE_BYTES, decoder_errors, is_dicom, read_header

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
LONGEST_UID = 64


@dataclass(frozen=True)
class SentInstance:
    """An instance with pixels. Its UIDs are the replaced ones; `sop_class` is empty for a private one."""

    sop_class: str
    uid: str
    series: str
    study: str
    frames: int


def sent_instance(path: Path, new_uid: NewUid, limits: Limits) -> SentInstance:
    """What lies at `path`; reads its header alone.

    Raises UnsupportedScan for what is no PS3.10 file or has no pixels, InvalidScan for a damaged one or one
    without its three UIDs, ScanTooLarge.
    """
    with SingleFile(path) as tree:
        (member,) = tree.members
        if not is_dicom(tree.read(member, PREAMBLE_BYTES + 4)):
            raise UnsupportedScan("a part is no DICOM file with the DICM marker of Part 10")
        found = read_header(tree, member, limits)
        if found is None:
            raise UnsupportedScan("a DICOM document without pixel data; send images")
        dataset, pixels = found
        with decoder_errors(member):
            sop_class = str(dataset.get("SOPClassUID") or "")
            uid, series, study = (
                _replaced(str(dataset.get(keyword) or ""), keyword, new_uid)
                for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
            )
    known = sop_class.startswith(OF_DICOM) and UID.fullmatch(sop_class) is not None
    return SentInstance(sop_class if known else "", uid, series, study, pixels.frames)


def _replaced(uid: str, keyword: str, new_uid: NewUid) -> str:
    if not UID.fullmatch(uid) or len(uid) > LONGEST_UID:
        raise InvalidScan(f"the instance has no {keyword}, or none that is a UID")
    return new_uid(uid)
