"""The UIDs that a volume has as a DICOM series (PS3.3 C.7.2.1, C.7.3.1, C.7.4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from storage.dicom_uids import derived_uid
from storage.records import StoredVolume


@dataclass(frozen=True)
class Identity:
    """The UIDs of a volume, none of them a sender's."""

    study: str
    series: str
    frame_of_reference: str

    @classmethod
    def of(cls, stored: StoredVolume) -> Identity:
        """Those that replaced the sender's, else such as are made of its digest.

        What a job made of a volume is another series of the same study, in the same frame of reference.
        """
        kept = stored.metadata
        root = stored.digest if stored.derived is None else stored.derived.digest
        series = kept.get("SeriesInstanceUID") if stored.derived is None else None
        return cls(
            kept.get("StudyInstanceUID") or derived_uid(root, "study"),
            series or derived_uid(stored.digest, "series"),
            kept.get("FrameOfReferenceUID") or derived_uid(root, "frame of reference"),
        )
