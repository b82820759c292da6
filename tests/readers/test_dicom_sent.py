"""Single instances as STOW-RS brings them: known by replaced UIDs, refused without a word of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import MRImageStorage, generate_uid
from test_dicom import multi_frame, save, slice_of
from whole_scans import ramp

from storage.dicom_uids import UidMap
from storage.errors import InvalidScan, ScanError, UnsupportedScan
from storage.readers.base import Limits
from storage.readers.dicom_sent import sent_instance

NEW_UID = UidMap(bytes(32))


def test_an_instance_is_known_by_replaced_uids(tmp_path: Path) -> None:
    dataset = slice_of(ramp((4, 5)), 0, StudyInstanceUID=generate_uid())
    found = sent_instance(save(tmp_path / "a", dataset), NEW_UID, Limits())
    assert (found.sop_class, found.frames) == (MRImageStorage, 1)
    assert (found.uid, found.series, found.study) == (
        NEW_UID(dataset.SOPInstanceUID),
        NEW_UID(dataset.SeriesInstanceUID),
        NEW_UID(dataset.StudyInstanceUID),
    )


def test_frames_are_counted_and_private_classes_not_told(tmp_path: Path) -> None:
    dataset = multi_frame(ramp((6, 40, 33)), [0, 1, 2, 3, 4, 5])
    dataset.StudyInstanceUID, dataset.SOPClassUID = "1.2.3", "1.2.276.4711"
    found = sent_instance(save(tmp_path / "a", dataset), NEW_UID, Limits())
    assert (found.sop_class, found.frames) == ("", 6)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"StudyInstanceUID": None}, InvalidScan, "StudyInstanceUID"),
        ({"SeriesInstanceUID": ""}, InvalidScan, "SeriesInstanceUID"),
        ({"PixelData": None, "Rows": None}, UnsupportedScan, "without pixel data"),
    ],
)
def test_what_cannot_be_stored(
    tmp_path: Path, changes: dict[str, object], error: type[ScanError], told: str
) -> None:
    dataset = slice_of(np.ones((4, 5), "i2"), 0, StudyInstanceUID="1.2.3")
    for keyword, value in changes.items():
        setattr(dataset, keyword, value) if value is not None else delattr(dataset, keyword)
    path = save(tmp_path / "a", dataset)
    with pytest.raises(error, match=told):
        sent_instance(path, NEW_UID, Limits())


def test_what_is_no_uid_is_not_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a", slice_of(np.ones((4, 5), "i2"), 0, StudyInstanceUID="1.2.345678"))
    path.write_bytes(path.read_bytes().replace(b"1.2.345678", b"QuandtIda1"))
    with pytest.raises(InvalidScan, match="StudyInstanceUID") as caught:
        sent_instance(path, NEW_UID, Limits())
    assert "Ida" not in str(caught.value)


def test_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"Secret^Name" * 50)
    with pytest.raises(UnsupportedScan) as caught:
        sent_instance(tmp_path / "a", NEW_UID, Limits())
    assert "Secret" not in str(caught.value)
