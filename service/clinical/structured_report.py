"""A prediction as a DICOM structured report: TID 1500 Measurement Report in a Comprehensive SR (PS3.3 A.35).

Nobody has verified a prediction: the document is complete, unverified and preliminary. Of the patient it says
nothing, since nothing is known here. It is of the study that the scan is in, and refers to the scan's planes
as this service exports and serves them, by UIDs that took the place of the sender's (storage/dicom_uids.py).

Import it where a report is asked for, and not before: highdicom is an extra, and slow to import.
"""

from __future__ import annotations

import io
import uuid
from importlib.metadata import version

import highdicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import ComprehensiveSR, MeasurementReport
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, DT, TM

from service.clinical import uuids
from service.clinical.prediction import SOFTWARE, Report
from service.clinical.sr_content import SCHEME, group, observer, words
from service.clinical.sr_images import MOST_LISTED, evidence, library
from storage.exports.dicom import DicomSeries

_PROCEDURES = {
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "PT": Code("82918005", "SCT", "Positron emission tomography"),
}
_IMAGING = Code("363679005", "SCT", "Imaging")


def document(report: Report, series: DicomSeries | None) -> bytes:
    """The report as a file (PS3.10), explicit VR little endian; it names no image where there is no `series`.

    The same report and series give the same bytes. What is another document, as it is when the scan has been
    deleted since, has another SOP Instance UID (PS3.3 C.12.1.1.1).
    """
    file = io.BytesIO()
    _document(report, series).save_as(file, enforce_file_format=True)
    return file.getvalue()


def _document(report: Report, series: DicomSeries | None) -> ComprehensiveSR:
    instances = evidence(report, series)
    date, time = DA(report.issued.date()), TM(report.issued.time())
    made = ComprehensiveSR(
        evidence=instances,
        content=_content(report, series, instances),
        series_instance_uid=uuids.uid(uuids.part(report.identity, "series")),
        series_number=1,
        sop_instance_uid=uuids.uid(_named(report, instances)),
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
    if series is None:
        del made.CurrentRequestedProcedureEvidenceSequence
    made.InstanceCreationDate, made.InstanceCreationTime = date, time
    made.TimezoneOffsetFromUTC = "+0000"
    made.ContributingEquipmentSequence[0].ContributionDateTime = DT(report.issued.replace(tzinfo=None))
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "No attribute of the patient or the study is kept"
    return made


def _named(report: Report, instances: list[Dataset]) -> uuid.UUID:
    """By all that may differ between documents of one job: what they refer to, and the programs."""
    programs = [version("tomotrain"), highdicom.__version__]
    named = [report.study, *(image.SOPInstanceUID for image in instances)]
    return uuids.part(report.identity, "\n".join([*programs, *named]))


def _content(report: Report, series: DicomSeries | None, instances: list[Dataset]) -> MeasurementReport:
    """The content tree."""
    made = MeasurementReport(
        observation_context=observer(report),
        procedure_reported=_PROCEDURES.get(report.modality or "", _IMAGING),
        imaging_measurements=[group(report)],
    )
    root = made[0].ContentSequence
    if series is not None and len(instances) <= MOST_LISTED:
        root.insert(len(root) - 1, library(report, series, instances))
    root.append(words(report))
    return made


def _scheme() -> CodingSchemeIdentificationItem:
    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="Codes of Tomotrain's predictions", responsible_organization=SOFTWARE
    )
    scheme.CodingSchemeUID = uuids.uid(uuids.NAMESPACE)
    return scheme
