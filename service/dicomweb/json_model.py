"""The DICOM JSON model (PS3.18 F.2) of what volumes are: studies, series and instances, as QIDO-RS gives them
(PS3.18 10.6.3.3), and the answer to a STOW-RS request (PS3.18 10.5.3.2).

A volume is a series, its planes are instances. Attributes of a patient are there and empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.dicom_series import modality_of
from storage.exports.dicom_identity import Identity
from storage.records import StoredVolume

Attributes = dict[str, dict[str, Any]]
"""By tag, eight hexadecimal digits: `{"vr": ..., "Value": [...]}`."""

TAGS: Mapping[str, tuple[str, str]] = {
    "SOPClassUID": ("00080016", "UI"),
    "SOPInstanceUID": ("00080018", "UI"),
    "StudyDate": ("00080020", "DA"),
    "StudyTime": ("00080030", "TM"),
    "AccessionNumber": ("00080050", "SH"),
    "InstanceAvailability": ("00080056", "CS"),
    "Modality": ("00080060", "CS"),
    "ModalitiesInStudy": ("00080061", "CS"),
    "ReferringPhysicianName": ("00080090", "PN"),
    "StudyDescription": ("00081030", "LO"),
    "SeriesDescription": ("0008103E", "LO"),
    "ReferencedSOPClassUID": ("00081150", "UI"),
    "ReferencedSOPInstanceUID": ("00081155", "UI"),
    "RetrieveURL": ("00081190", "UR"),
    "WarningReason": ("00081196", "US"),
    "FailureReason": ("00081197", "US"),
    "FailedSOPSequence": ("00081198", "SQ"),
    "ReferencedSOPSequence": ("00081199", "SQ"),
    "PatientName": ("00100010", "PN"),
    "PatientID": ("00100020", "LO"),
    "PatientBirthDate": ("00100030", "DA"),
    "PatientSex": ("00100040", "CS"),
    "BodyPartExamined": ("00180015", "CS"),
    "StudyInstanceUID": ("0020000D", "UI"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "StudyID": ("00200010", "SH"),
    "SeriesNumber": ("00200011", "IS"),
    "InstanceNumber": ("00200013", "IS"),
    "FrameOfReferenceUID": ("00200052", "UI"),
    "NumberOfStudyRelatedSeries": ("00201206", "IS"),
    "NumberOfStudyRelatedInstances": ("00201208", "IS"),
    "NumberOfSeriesRelatedInstances": ("00201209", "IS"),
    "Rows": ("00280010", "US"),
    "Columns": ("00280011", "US"),
    "BitsAllocated": ("00280100", "US"),
}
KEYWORDS = {tag: keyword for keyword, (tag, _) in TAGS.items()}
NEVER_KEPT = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyID", "StudyDescription", "SeriesDescription",
)  # fmt: skip
COERCED = 0xB000
"""Coercion of data elements (PS3.18 table 10.5.3-2): identities are replaced in whatever is stored."""
NOT_UNDERSTOOD, WRONG_CLASS, NO_ROOM, MISMATCH = 0xC000, 0x0122, 0xA700, 0xA900
PROCESSING, DUPLICATE = 0x0110, 0x0111
"""Reasons for a failure (PS3.18 table 10.5.3-3, PS3.4 table B.2-1, PS3.7 annex C)."""


@dataclass(frozen=True)
class SeriesEntry:
    """A volume as a series of single-frame instances, and where it is to be had."""

    identity: Identity
    stored: StoredVolume
    address: str
    """Of all studies: `https://.../dicomweb/studies`."""

    @property
    def instances(self) -> int:
        """How many: one for each plane of each frame."""
        frames = self.stored.array_shape[0] if len(self.stored.axes) == 4 else 1
        return frames * self.stored.grid.shape[0]

    @property
    def modality(self) -> str:
        """That which was kept; `OT` where none was."""
        return modality_of(self.stored)

    @property
    def study_url(self) -> str:
        """Where the study is."""
        return f"{self.address}/{self.identity.study}"

    @property
    def url(self) -> str:
        """Where the series is."""
        return f"{self.study_url}/series/{self.identity.series}"


def attributes(**values: Any) -> Attributes:
    """Attributes by keyword, in the order of their tags; None for one without a value."""
    found = {TAGS[keyword][0]: element(keyword, value) for keyword, value in values.items()}
    return dict(sorted(found.items()))


def element(keyword: str, value: Any) -> dict[str, Any]:
    """One attribute: its kind, and its values where it has any."""
    vr = TAGS[keyword][1]
    if value is None or value in ([], ""):
        return {"vr": vr}
    values = list(value) if isinstance(value, list | tuple) else [value]
    return {"vr": vr, "Value": values}


def study(entries: Sequence[SeriesEntry]) -> Attributes:
    """A study of at least one series, at the level of studies."""
    first = entries[0]
    return attributes(
        **{keyword: None for keyword in NEVER_KEPT if keyword != "SeriesDescription"},
        InstanceAvailability="ONLINE",
        ModalitiesInStudy=sorted({entry.modality for entry in entries}),
        RetrieveURL=first.study_url,
        StudyInstanceUID=first.identity.study,
        NumberOfStudyRelatedSeries=len(entries),
        NumberOfStudyRelatedInstances=sum(entry.instances for entry in entries),
    )


def series(entry: SeriesEntry) -> Attributes:
    """A series, at the level of series, with the UID of its study."""
    return attributes(
        InstanceAvailability="ONLINE",
        Modality=entry.modality,
        SeriesDescription=None,
        BodyPartExamined=entry.stored.metadata.get("BodyPartExamined"),
        RetrieveURL=entry.url,
        StudyInstanceUID=entry.identity.study,
        SeriesInstanceUID=entry.identity.series,
        SeriesNumber=1,
        FrameOfReferenceUID=entry.identity.frame_of_reference,
        NumberOfSeriesRelatedInstances=entry.instances,
    )


def instance(entry: SeriesEntry, sop_class: str, uid: str, number: int) -> Attributes:
    """One of the instances, at their level; `number` counts from 1."""
    rows, columns = entry.stored.grid.shape[1:]
    return attributes(
        SOPClassUID=sop_class,
        SOPInstanceUID=uid,
        InstanceAvailability="ONLINE",
        Modality=entry.modality,
        RetrieveURL=f"{entry.url}/instances/{uid}",
        StudyInstanceUID=entry.identity.study,
        SeriesInstanceUID=entry.identity.series,
        InstanceNumber=number,
        Rows=rows,
        Columns=columns,
        BitsAllocated=16,
    )


@dataclass(frozen=True)
class Stowed:
    """What became of one instance that was sent. UIDs are the replaced ones; `failure` a reason, or None."""

    sop_class: str | None
    uid: str | None
    url: str | None = None
    failure: int | None = None


def stow_answer(study_url: str | None, items: Iterable[Stowed]) -> tuple[int, Attributes]:
    """(status, body) of the answer to STOW-RS, its items in the order in which the instances came.

    200 is never given where something was stored: its identity was replaced, which is a warning, and so 202;
    409 where nothing was (PS3.18 table 10.5.3-1).
    """
    stored, failed = list[Attributes](), list[Attributes]()
    for item in items:
        reference = {"ReferencedSOPClassUID": item.sop_class, "ReferencedSOPInstanceUID": item.uid}
        if item.failure is None:
            stored.append(attributes(**reference, RetrieveURL=item.url, WarningReason=COERCED))
        else:
            failed.append(attributes(**reference, FailureReason=item.failure))
    told: dict[str, Any] = {"RetrieveURL": study_url} if stored else {}
    if failed:
        told["FailedSOPSequence"] = failed
    if stored:
        told["ReferencedSOPSequence"] = stored
    return (202 if stored else 409), attributes(**told)
