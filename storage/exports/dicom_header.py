"""What the instances of a volume have alike, and how their attributes are written (PS3.3, PS3.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidParameters
from storage.records import StoredVolume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset

CT, MR, SECONDARY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLEMENTATION = "2.25.329800735698586629295641978511506172918"
"""Of files that this module writes (PS3.7 D.3.3.2)."""
NEEDED_BY_MR = ("ScanningSequence", "SequenceVariant")
TECHNIQUE = (
    "BodyPartExamined", "PatientPosition", "BurnedInAnnotation", "RecognizableVisualFeatures", "KVP",
    "XRayTubeCurrent", "Exposure", "ConvolutionKernel", "ReconstructionDiameter", "GantryDetectorTilt",
    "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "MagneticFieldStrength",
)  # fmt: skip
"""Kept attributes that are handed on; others say how the sender's pixels were coded."""
OF_ONE_CHANNEL = ("EchoTime", "InversionTime", "FlipAngle")
"""Channels may differ in these, and those of the first are kept."""
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "ReferringPhysicianName", "AccessionNumber", "PositionReferenceIndicator",
)  # fmt: skip
METHOD = "Tomotrain: attributes by allow-list, UIDs replaced"
BASIC_PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")
REMOVED = "REMOVED"
LOSSY = frozenset({"compress", "decompress"})
PERPENDICULAR = 1e-3
"""Largest cosine between rows and columns that is taken for a rounded 0."""
ASKED = "export it as nifti or ome-zarr"


@dataclass(frozen=True)
class Placement:
    """Where planes lie, in LPS mm: directions of rows and columns, spacings, and `origin + plane * step`; or
    `uneven`, the positions (planes, 3) of such as do not follow each other in equal steps.
    """

    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    origin: NDArray[np.float64]
    step: NDArray[np.float64]
    uneven: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, stored: StoredVolume) -> Placement | None:
        """That of a volume; None where its place is unknown.

        Raises InvalidParameters where rows and columns are not perpendicular: DICOM's always are.
        """
        if stored.grid.affine is None:
            return None
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stored.grid.matrix
        across, down, step, origin = matrix[:3].T
        sizes = float(np.linalg.norm(down)), float(np.linalg.norm(across))
        row, column = across / sizes[1], down / sizes[0]
        if abs(float(row @ column)) > PERPENDICULAR:
            told = f"rows and columns have a cosine of {float(row @ column):.3g} between them"
            raise InvalidParameters([("/format", f"{told}, and in DICOM they are perpendicular: {ASKED}")])
        sent = np.array(stored.metadata.get("slice_positions_lps_mm", ()), np.float64)
        return cls(
            row, column, sizes, origin, step, sent if sent.shape == (stored.grid.shape[0], 3) else None
        )

    def position(self, plane: int) -> NDArray[np.float64]:
        """Of a plane's first pixel."""
        found: NDArray[np.float64] = (
            self.origin + plane * self.step if self.uneven is None else self.uneven[plane]
        )
        return found

    @property
    def thickness(self) -> float:
        """From plane to plane along the normal."""
        normal = np.cross(self.row, self.column)
        return float(abs(self.step @ normal) / np.linalg.norm(normal))


def sop_class_of(stored: StoredVolume, placement: Placement | None, *, exact: bool) -> str:
    """The class of the instances; `exact` where they are stored without a rescale."""
    modality = stored.metadata.get("Modality")
    if placement is None:
        return SECONDARY
    if modality == "CT":
        return CT
    complete = all(name in stored.metadata for name in NEEDED_BY_MR)
    return MR if modality == "MR" and complete and exact else SECONDARY


def shared_header(stored: StoredVolume, placement: Placement | None, sop_class: str) -> Dataset:
    """What all instances have alike, without their UIDs."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - slow to import

    dataset = Dataset()
    dataset.SpecificCharacterSet, dataset.SOPClassUID, dataset.SeriesNumber = "ISO_IR 192", sop_class, 1
    for keyword in EMPTY:
        setattr(dataset, keyword, "")
    _add_removal(dataset)
    dataset.Rows, dataset.Columns = stored.grid.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    _add_technique(dataset, stored, sop_class)
    _add_spacing(dataset, stored, placement)
    return dataset


def _add_removal(dataset: Dataset) -> None:
    """That and how identities were removed (PS3.15 E.1.1, PS3.3 C.7.1.1)."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - slow to import

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = BASIC_PROFILE
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    dataset.DeidentificationMethodCodeSequence = [code]
    dataset.LongitudinalTemporalInformationModified = REMOVED


def _add_technique(dataset: Dataset, stored: StoredVolume, sop_class: str) -> None:
    kept = stored.metadata
    dataset.Modality = kept.get("Modality", "OT")
    dataset.Manufacturer = kept.get("Manufacturer", "")
    if "ManufacturerModelName" in kept:
        dataset.ManufacturerModelName = kept["ManufacturerModelName"]
    for keyword in TECHNIQUE:
        if keyword in kept and not (stored.axes[0] == "c" and keyword in OF_ONE_CHANNEL):
            setattr(dataset, keyword, _in_its_form(keyword, kept[keyword]))
    needed = {CT: ("KVP", "PatientPosition"), MR: ("ScanOptions", "MRAcquisitionType", "EchoTime",
              "EchoTrainLength", "PatientPosition"), SECONDARY: ()}  # fmt: skip
    for keyword in needed[sop_class]:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if sop_class == SECONDARY:
        dataset.ConversionType = "WSD"
    if stored.derived is not None and stored.derived.kind in LOSSY:
        dataset.LossyImageCompression = "01"


def _add_spacing(dataset: Dataset, stored: StoredVolume, placement: Placement | None) -> None:
    """Spacings by the affine, else by the sizes of voxels; a kept thickness where there are neighbours."""
    kept, planes = stored.metadata.get("SliceThickness"), stored.grid.shape[0]
    if placement is not None:
        dataset.ImageOrientationPatient = decimals(np.concatenate([placement.row, placement.column]))
        dataset.PixelSpacing = decimals(np.array(placement.spacing))
        between = placement.thickness
    elif stored.grid.spacing is not None:
        between, *sizes = stored.grid.spacing
        dataset.PixelSpacing, dataset.PatientOrientation = decimals(np.array(sizes)), ""
    else:
        dataset.PatientOrientation = ""
        return
    if placement is None or placement.uneven is None:
        dataset.SpacingBetweenSlices = decimal(between)
    dataset.SliceThickness = decimal(kept if planes > 1 and isinstance(kept, int | float) else between)


def derivation(stored: StoredVolume, error: float) -> Iterator[str]:
    """How the pixels came about."""
    yield "De-identified copy" if stored.derived is None else f"Made by Tomotrain: {stored.derived.kind}"
    if error > 0:
        yield f"values rounded to 16 bits, by {error:.3g} at most"


def _in_its_form(keyword: str, value: Any) -> Any:
    """A kept value as the attribute has it: decimal strings have 16 characters at most."""
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - slow to import

    if dictionary_VR(keyword) != "DS":
        return value
    return [decimal(each) for each in value] if isinstance(value, list) else decimal(value)


def decimal(value: float) -> str:
    """A decimal string: 16 characters at most."""
    from pydicom.valuerep import format_number_as_ds  # noqa: PLC0415 - slow to import

    return format_number_as_ds(float(value))


def decimals(values: NDArray[np.float64]) -> list[str]:
    """Decimal strings of some numbers."""
    return [decimal(value) for value in values.tolist()]


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """The file meta information (PS3.10 7.1)."""
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - slow to import
    from pydicom.uid import UID  # noqa: PLC0415

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "TOMOTRAIN"
    return meta
