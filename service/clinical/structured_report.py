"""A prediction as a DICOM structured report: TID 1500 Measurement Report in a Comprehensive SR (PS3.3 A.35).

Nobody has verified a prediction: the document is complete, unverified and preliminary. Of the patient it says
nothing, since nothing is known here. What it refers to is the scan as this service holds it, one object of a
whole volume, in the study as its UID was replaced when the scan came (PS3.15 Annex E, action U), and else by
UIDs that follow from the volume's id: two reports on a scan name the same one.

Import it where a report is asked for, and not before: highdicom is an extra, and slow to import.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import ComprehensiveSR, MeasurementReport
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
from pydicom.valuerep import DA, DT, TM, DSfloat

from service.clinical import uuids
from service.clinical.prediction import SOFTWARE, Report
from service.clinical.sr_content import SCHEME, group, observer, words
from storage.grid import VoxelGrid

_OBJECTS = {
    "CT": EnhancedCTImageStorage,
    "MR": EnhancedMRImageStorage,
    "PT": EnhancedPETImageStorage,
}
"""What a whole volume of a modality is in DICOM; of others a secondary capture of many frames."""
_PROCEDURES = {
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "PT": Code("82918005", "SCT", "Positron emission tomography"),
}
_IMAGING = Code("363679005", "SCT", "Imaging")
_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""What the document must have, and may have empty (type 2)."""
_TO_LPS = np.array([-1.0, -1.0, 1.0])
"""From RAS+ to the patient's axes of DICOM (PS3.3 C.7.6.2.1.1)."""


def document(report: Report) -> bytes:
    """The report as a file (PS3.10), explicit VR little endian. The same report gives the same bytes."""
    made = _document(report)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _document(report: Report) -> ComprehensiveSR:
    scan = _scan(report)
    date, time = DA(report.issued.date()), TM(report.issued.time())
    made = ComprehensiveSR(
        evidence=[scan],
        content=_content(report, scan),
        series_instance_uid=uuids.uid(uuids.part(report.identity, "series")),
        series_number=1,
        sop_instance_uid=uuids.uid(report.identity),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=f"{SOFTWARE} predict",
        software_versions=report.prediction.version,
        series_description="Prediction for research",
        is_complete=True,
        is_final=False,
        is_verified=False,
        content_date=date,
        content_time=time,
        specific_character_set="ISO_IR 192",
        coding_schemes=[_scheme()],
    )
    made.InstanceCreationDate, made.InstanceCreationTime = date, time
    made.TimezoneOffsetFromUTC = "+0000"
    made.ContributingEquipmentSequence[0].ContributionDateTime = DT(report.issued.replace(tzinfo=None))
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "No attribute of the patient or the study is kept"
    return made


def _content(report: Report, scan: Dataset) -> MeasurementReport:
    """The content tree."""
    made = MeasurementReport(
        observation_context=observer(report),
        procedure_reported=_PROCEDURES.get(report.modality or "", _IMAGING),
        imaging_measurements=[group(report)],
        referenced_images=None if report.stored is None else [scan],
    )
    made[0].ContentSequence.append(words(report))
    return made


def _scheme() -> CodingSchemeIdentificationItem:
    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="Codes of Tomotrain's predictions", responsible_organization=SOFTWARE
    )
    scheme.CodingSchemeUID = uuids.uid(uuids.NAMESPACE)
    return scheme


def _scan(report: Report) -> Dataset:
    """What the report refers to, as far as it is known."""
    scan = Dataset()
    for keyword in _EMPTY:
        setattr(scan, keyword, None)
    volume = uuids.own(report.volume_id)
    scan.SOPClassUID = _OBJECTS.get(
        report.modality or "", MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    )
    scan.StudyInstanceUID = report.study
    scan.SeriesInstanceUID = uuids.uid(uuids.part(volume, "series"))
    scan.SOPInstanceUID = uuids.uid(volume)
    scan.Modality = "OT"
    if report.frame_of_reference is not None:
        scan.FrameOfReferenceUID = report.frame_of_reference
    if report.stored is not None:
        _, scan.Rows, scan.Columns = report.stored.grid.shape
        _place(scan, report.stored.grid, report)
    return scan


def _place(scan: Dataset, grid: VoxelGrid, report: Report) -> None:
    """Where a cross-section lies (TID 1604); nothing where that is not known whole."""
    thickness = None if report.stored is None else report.stored.metadata.get("SliceThickness")
    if report.modality not in _OBJECTS or grid.spacing is None or not isinstance(thickness, (int, float)):
        return
    axes = grid.matrix[:3, :3] / np.array(grid.spacing[::-1]) * _TO_LPS[:, None]
    scan.Modality = report.modality
    scan.PixelSpacing = _decimals(grid.spacing[1:])
    scan.SliceThickness, scan.SpacingBetweenSlices = _decimals((thickness, grid.spacing[0]))
    scan.ImagePositionPatient = _decimals(grid.matrix[:3, 3] * _TO_LPS)
    scan.ImageOrientationPatient = _decimals(axes[:, :2].T.ravel())


def _decimals(numbers: Iterable[float]) -> list[DSfloat]:
    """Decimal strings of 16 characters at most."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]
