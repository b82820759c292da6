"""The images that a prediction is of, as a structured report refers to them (PS3.16, TID 1600 to 1604).

They are the planes of the scan as this service exports and serves it (storage/exports/dicom.py): who has
those has what the report is about. What all planes have alike is said once, of their group.

Import it where a report is asked for, and not before: highdicom is an extra, and slow to import.
"""

from __future__ import annotations

from highdicom.sr import CodedConcept, ContainerContentItem, ContentSequence, ImageContentItem
from highdicom.sr import RelationshipTypeValues as Relationship
from highdicom.sr.templates import ImageLibraryEntryDescriptors
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import PositronEmissionTomographyImageStorage

from service.clinical import uuids
from service.clinical.prediction import Report
from storage.exports.dicom import DicomSeries
from storage.exports.dicom_header import CT, MR, SECONDARY, decimals, shared_header

_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""What the document takes from the first of its evidence: it must have them, and has them empty (type 2)."""
MOST_LISTED = 256
"""Planes that a library lists: each takes milliseconds, and is named among the evidence in any case."""
_SOURCE = CodedConcept("260753009", "SCT", "Source")
_CLASSES = {"CT": CT, "MR": MR, "PT": PositronEmissionTomographyImageStorage}
"""Of cross-sections, by modality: that of secondary captures says none."""
_OF_ONE_PLANE = "Image Position"
"""Begins the names of descriptors in which planes differ."""


def evidence(report: Report, series: DicomSeries | None) -> list[Dataset]:
    """Every plane; where there is none to be named, one that stands for the study and is not referred to."""
    if series is None:
        own = uuids.uid(report.identity)
        found = [_instance(report.study, own, own, SECONDARY)]
    else:
        found = [
            _instance(
                report.study, series.identity.series, series.instance_uid(plane, frame), series.sop_class
            )
            for frame in range(series.frames)
            for plane in range(series.planes)
        ]
    for keyword in _EMPTY:
        setattr(found[0], keyword, None)
    return found


def library(report: Report, series: DicomSeries, instances: list[Dataset]) -> ContainerContentItem:
    """TID 1600: one group of all planes. For `MOST_LISTED` at most."""
    planes = [
        ImageContentItem(
            name=_SOURCE,
            referenced_sop_class_uid=image.SOPClassUID,
            referenced_sop_instance_uid=image.SOPInstanceUID,
            relationship_type=Relationship.CONTAINS,
        )
        for image in instances
    ]
    descriptors = ImageLibraryEntryDescriptors(_described(report, series))
    shared = [item for item in descriptors if not item.name.meaning.startswith(_OF_ONE_PLANE)]
    group = _container(codes.DCM.ImageLibraryGroup, ContentSequence([*shared, *planes]))
    return _container(codes.DCM.ImageLibrary, ContentSequence([group]))


def _container(name: CodedConcept, content: ContentSequence) -> ContainerContentItem:
    made = ContainerContentItem(name=name, relationship_type=Relationship.CONTAINS)
    made.ContentSequence = content
    return made


def _instance(study: str, series: str, instance: str, sop_class: str) -> Dataset:
    """What is said of an image that is referred to."""
    image = Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.SOPInstanceUID, image.SOPClassUID = instance, sop_class
    return image


def _described(report: Report, series: DicomSeries) -> Dataset:
    """What highdicom describes an image by: its modality by its class, and a cross-section by its place in
    the patient, where that is known.
    """
    image = shared_header(series.stored, series.placement, series.sop_class)
    image.FrameOfReferenceUID = series.identity.frame_of_reference
    image.SOPClassUID = _CLASSES.get(report.modality or "", SECONDARY)
    image.Modality = "OT"
    if series.placement is not None and report.modality in _CLASSES:
        image.Modality = report.modality
        image.ImagePositionPatient = decimals(series.placement.origin)
    return image
