"""The planes of one DICOM file: position, spacing, rescale and marks of each frame, whatever its dialect.

Single-frame files say it at the top, enhanced multi-frame files in functional groups (PS3.3 C.7.6.16),
Siemens mosaics in a private header (read by nibabel).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from storage.errors import InvalidScan
from storage.readers.archives import Member, Tree
from storage.readers.base import Limits
from storage.readers.dicom_instance import (
    Instance,
    Plane,
    decoder_errors,
    modality_lut,
    numbers,
    read_header,
)
from storage.readers.dicom_kept import kept_metadata, modality
from storage.readers.rescale import Rescale


def read_planes(tree: Tree, member: Member, limits: Limits) -> list[Plane]:
    """The planes of one file, in the order in which they are stored; none where it holds no pixels.

    Raises InvalidScan, UnsupportedScan or ScanTooLarge.
    """
    header = read_header(tree, member, limits)
    if header is None:
        return []
    dataset, pixels = header
    with decoder_errors(member):
        instance = Instance(
            member=member,
            uid=str(dataset.get("SOPInstanceUID") or ""),
            series=str(dataset.get("SeriesInstanceUID") or ""),
            study=str(dataset.get("StudyInstanceUID") or ""),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
            number=int(dataset.get("InstanceNumber") or 0),
            modality=modality(dataset),
            pixels=pixels,
            lut=modality_lut(dataset),
            metadata=kept_metadata(dataset),
            step_s=_step(dataset),
            temporal_positions=int(dataset.get("NumberOfTemporalPositions") or 0) or None,
        )
        planes = [_plane(dataset, instance, frame) for frame in range(pixels.frames)]
        if "MOSAIC" in (dataset.get("ImageType") or ()):
            return _tiles(dataset, planes[0])
        return planes


def _step(dataset: Any) -> float | None:
    """Seconds between time points: TemporalResolution, or the repetition time of an echo-planar scan."""
    milliseconds = dataset.get("TemporalResolution")
    if not milliseconds and "EP" in (dataset.get("ScanningSequence") or ()):
        milliseconds = dataset.get("RepetitionTime")
    if not milliseconds or not math.isfinite(float(milliseconds)) or float(milliseconds) <= 0:
        return None
    return float(milliseconds) / 1000


def _plane(dataset: Any, instance: Instance, frame: int) -> Plane:
    groups = _FunctionalGroups.of(dataset, frame)
    spacing = numbers(groups.value("PixelMeasuresSequence", "PixelSpacing"), 2)
    thickness = numbers(groups.value("PixelMeasuresSequence", "SliceThickness"), 1)
    between = numbers(groups.value("PixelMeasuresSequence", "SpacingBetweenSlices"), 1)
    return Plane(
        instance=instance,
        frame=frame,
        size=(instance.pixels.rows, instance.pixels.columns),
        position=numbers(groups.value("PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=numbers(groups.value("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=spacing,
        thickness=next((each[0] for each in (thickness, between) if each and each[0] > 0), None),
        rescale=_rescale(groups, instance, frame),
        times=_times(groups),
        kinds=_kinds(groups),
    )


@dataclass(frozen=True)
class _FunctionalGroups:
    """Where to look for an attribute of a frame: its own groups, then the shared ones, then the data set."""

    dataset: Any
    holders: tuple[Any, ...]

    @classmethod
    def of(cls, dataset: Any, frame: int) -> _FunctionalGroups:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        if len(per_frame) and frame >= len(per_frame):
            raise InvalidScan(
                f"functional groups of {len(per_frame)} frames only; frame {frame + 1} has none"
            )
        return cls(dataset, (*([per_frame[frame]] if len(per_frame) else []), *shared[:1]))

    def value(self, sequence: str, keyword: str) -> Any:
        """The attribute's value, or None."""
        for holder in self.holders:
            items = holder.get(sequence)
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return self.dataset.get(keyword)


def _rescale(groups: _FunctionalGroups, instance: Instance, frame: int) -> Rescale:
    slope = groups.value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = groups.value("PixelValueTransformationSequence", "RescaleIntercept")
    rescale = Rescale(1.0 if slope in (None, "") else float(slope), float(intercept or 0))
    if rescale.slope == 0 or not math.isfinite(rescale.slope) or not math.isfinite(rescale.intercept):
        where = f"frame {frame + 1} of {instance.member.told}" if frame else f"slice {instance.member.told}"
        raise InvalidScan(
            f"RescaleSlope {rescale.slope:g}, intercept {rescale.intercept:g} in {where}: no real values"
        )
    return rescale


def _times(groups: _FunctionalGroups) -> dict[str, float | str]:
    index = groups.value("FrameContentSequence", "TemporalPositionIndex")
    if index is None:
        index = groups.dataset.get("TemporalPositionIdentifier")
    return {
        "temporal position": float(index or 0),
        "acquisition number": float(groups.value("FrameContentSequence", "FrameAcquisitionNumber") or 0)
        or float(groups.dataset.get("AcquisitionNumber") or 0),
        "trigger time": float(groups.dataset.get("TriggerTime") or 0),
        "acquisition time": str(groups.dataset.get("AcquisitionTime") or ""),
    }


def _kinds(groups: _FunctionalGroups) -> dict[str, float | str]:
    echo = groups.value("MREchoSequence", "EffectiveEchoTime")
    image_type = groups.value("MRImageFrameTypeSequence", "FrameType")
    if image_type is None:
        image_type = groups.dataset.get("ImageType")
    return {
        "stack": str(groups.value("FrameContentSequence", "StackID") or ""),
        "segment": float(groups.value("SegmentIdentificationSequence", "ReferencedSegmentNumber") or 0),
        "echo time": float(echo or groups.dataset.get("EchoTime") or 0),
        "b-value": float(groups.value("MRDiffusionSequence", "DiffusionBValue") or 0),
        "image type": "/".join(str(each) for each in image_type or ()),
    }


def _tiles(dataset: Any, mosaic: Plane) -> list[Plane]:
    """The slices of a Siemens mosaic, a square picture of tiles in reading order.

    The position in the header is that of the picture's corner had it the size of the mosaic; the first slice
    has the same centre (nibabel, "Siemens mosaic format"). Slices follow along the private slice normal.
    """
    count, normal = _mosaic_header(dataset, mosaic)
    side = math.isqrt(count - 1) + 1
    rows, columns = mosaic.size[0] // side, mosaic.size[1] // side
    if count < 1 or rows * side != mosaic.size[0] or columns * side != mosaic.size[1]:
        raise InvalidScan(f"{mosaic.name}: a mosaic of {count} slices does not fit its size of {mosaic.size}")
    tile = replace(mosaic, size=(rows, columns))
    if mosaic.position is None or mosaic.orientation is None or mosaic.spacing is None or normal is None:
        return [replace(tile, tile=number, position=None) for number in range(count)]
    along_row, along_column = np.array(mosaic.orientation[:3]), np.array(mosaic.orientation[3:])
    corner = (
        np.array(mosaic.position)
        + along_row * mosaic.spacing[1] * (mosaic.size[1] - columns) / 2
        + along_column * mosaic.spacing[0] * (mosaic.size[0] - rows) / 2
    )
    between = numbers(dataset.get("SpacingBetweenSlices"), 1)
    step = between[0] if between else mosaic.thickness or 0.0
    return [
        replace(tile, tile=number, position=tuple((corner + number * step * normal).tolist()))
        for number in range(count)
    ]


def _mosaic_header(dataset: Any, mosaic: Plane) -> tuple[int, Any]:
    """(number of slices, slice normal or None) by the private CSA header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader  # noqa: PLC0415 - warns on import, and only mosaics need it

    header = csareader.get_csa_header(dataset, "image")
    count = csareader.get_n_mosaic(header) if header else None
    if not count:
        raise InvalidScan(
            f"{mosaic.name} is a Siemens mosaic that does not say how many slices it holds; "
            "convert it to NIfTI, or send it with its private header"
        )
    normal = csareader.get_slice_normal(header)
    return int(count), None if normal is None else np.asarray(normal, np.float64)
