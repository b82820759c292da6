"""A volume as DICOM: one single-frame instance for each plane of each frame, uncompressed, explicit VR little
endian (PS3.3, PS3.5, PS3.10).

The SOP class is CT or MR Image where the kept modality is that, the volume's place in the patient is known,
and the attributes are there that the class cannot do without (of MR also 16 bits without a rescale, for which
it has no place); else Secondary Capture Image, whose planes may have a position and a rescale too (PS3.3
A.8.1). Enhanced multi-frame classes would say the same in one file that no one could have plane by plane.

Rows and columns are the array's; positions are the affine's, RAS turned to LPS, and so may lean, as those of
a tilted gantry, or where planes were unevenly spaced those that were sent. Frames in time are temporal
positions, channels differ in the fourth value of Image Type. Nothing identifies a patient: names and dates
are empty, UIDs are those that replaced the sender's (storage/dicom_uids.py), or made of the volume's digest
where there were none.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from storage.dicom_uids import INSTANCES, SentInstances, derived_uid
from storage.errors import InvalidParameters
from storage.exports.dicom_header import (
    CT,
    MR,
    Placement,
    decimal,
    decimals,
    derivation,
    file_meta,
    shared_header,
    sop_class_of,
)
from storage.exports.dicom_identity import Identity
from storage.exports.dicom_values import CodedPlane, coded, direct_dtype
from storage.exports.objects import sound_object
from storage.exports.slabs import slabs
from storage.jobs import Progress
from storage.readers.base import Voxels
from storage.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class DicomSeries:
    """A volume as the instances of one series. Reads no voxel before one is asked for."""

    def __init__(self, volume: Volume) -> None:
        """Raises InvalidParameters for a volume whose geometry DICOM cannot say."""
        self.volume, self.stored = volume, volume.stored
        self.identity = Identity.of(self.stored)
        self.placement = Placement.of(self.stored)
        self._direct = direct_dtype(self.stored)
        self.sop_class = sop_class_of(self.stored, self.placement, exact=self._direct is not None)
        self.largest_error = 0.0
        """Of all planes that were written so far, in the units of the values."""

    @property
    def frames(self) -> int:
        """How many time points or channels."""
        return self.stored.array_shape[0] if len(self.stored.axes) == 4 else 1

    @property
    def planes(self) -> int:
        """How many planes each of them has."""
        return self.stored.grid.shape[0]

    def __len__(self) -> int:
        return self.frames * self.planes

    def instance_uid(self, plane: int, frame: int = 0) -> str:
        """The SOP Instance UID of a plane.

        That which replaced the sender's, where an instance that was sent is this plane and no other.
        """
        sent = self._sent
        if sent is None or not sent[frame][plane]:
            return derived_uid(self.identity.series, frame, plane)
        return sent[frame][plane]

    def instance(self, plane: int, frame: int = 0) -> bytes:
        """One plane as a PS3.10 file; reads its chunks alone. Raises CorruptVolume, or InvalidParameters for
        a plane or frame that is not there.
        """
        return self._file(self.volume.plane("z", plane, frame=frame), plane, frame)

    def instances(
        self, depth: int, report: Callable[[Progress], None] = lambda progress: None
    ) -> Iterator[tuple[str, bytes]]:
        """(file name, PS3.10 file) of every plane in order; `depth` planes are in memory at a time.

        Raises CorruptVolume, and what `report` raises.
        """
        for slab in slabs(self.volume, depth):
            for plane, voxels in enumerate(slab.voxels, slab.start):
                number = slab.frame * self.planes + plane
                report(Progress("writing", number, len(self), "planes"))
                yield f"IM{number + 1:06}.dcm", self._file(voxels, plane, slab.frame)

    @cached_property
    def _sent(self) -> tuple[tuple[str, ...], ...] | None:
        """UIDs of instances that were sent with one plane each; None where planes and instances differ."""
        if INSTANCES not in self.volume.manifest.objects:
            return None
        planes = SentInstances.parse(sound_object(self.volume, INSTANCES)).planes
        if [len(frame) for frame in planes] != [self.planes] * self.frames:
            return None
        times = Counter(uid for frame in planes for uid in frame)
        return tuple(tuple(uid if times[uid] == 1 else "" for uid in frame) for frame in planes)

    @cached_property
    def _shared(self) -> Dataset:
        """What all instances have alike."""
        dataset = shared_header(self.stored, self.placement, self.sop_class)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.identity.study, self.identity.series
        dataset.FrameOfReferenceUID = self.identity.frame_of_reference
        return dataset

    def header(self, plane: int, frame: int = 0) -> Dataset:
        """All that stands in an instance but its pixels; reads no voxels where they are stored as they are.

        Raises as `instance`.
        """
        self._check(plane, frame)
        if self._direct is not None:
            return self._dataset(CodedPlane(np.empty((0, 0), self._direct)), plane, frame)
        return self._dataset(coded(self.volume.plane("z", plane, frame=frame), None), plane, frame)

    def _check(self, plane: int, frame: int) -> None:
        for pointer, value, count in (("/index", plane, self.planes), ("/frame", frame, self.frames)):
            if not 0 <= value < count:
                raise InvalidParameters([(pointer, f"goes from 0 to {count - 1} here, not {value}")])

    def _file(self, voxels: Voxels, plane: int, frame: int) -> bytes:
        from pydicom import dcmwrite  # noqa: PLC0415 - slow to import

        values, file = coded(voxels, self._direct), io.BytesIO()
        self.largest_error = max(self.largest_error, values.error)
        dataset = self._dataset(values, plane, frame)
        dataset.add_new("PixelData", "OW", np.ascontiguousarray(values.stored, "<i2").tobytes())
        dataset.file_meta = file_meta(dataset)
        dcmwrite(file, dataset, enforce_file_format=True)
        return file.getvalue()

    def _dataset(self, values: CodedPlane, plane: int, frame: int) -> Dataset:
        from pydicom.dataset import Dataset  # noqa: PLC0415 - slow to import

        dataset = Dataset()
        dataset.update(self._shared)
        dataset.SOPInstanceUID = self.instance_uid(plane, frame)
        dataset.InstanceNumber = frame * self.planes + plane + 1
        self._add_frame(dataset, frame)
        if self.placement is not None:
            dataset.ImagePositionPatient = decimals(self.placement.position(plane))
        self._add_values(dataset, values)
        return dataset

    def _add_frame(self, dataset: Dataset, frame: int) -> None:
        """Image type, and what tells frames apart."""
        dataset.AcquisitionNumber = 1
        kind = "AXIAL" if self.sop_class == CT else "OTHER"
        sent = self.stored.source_format == "dicom" and self.stored.derived is None
        dataset.ImageType = ["DERIVED", "PRIMARY" if sent else "SECONDARY", kind]
        if self.stored.axes[0] == "c":
            dataset.ImageType = [*dataset.ImageType, f"CHANNEL_{frame + 1:05}"]
        elif self.stored.axes[0] == "t":
            dataset.AcquisitionNumber = dataset.TemporalPositionIdentifier = frame + 1
            dataset.NumberOfTemporalPositions = self.frames
            if self.stored.frame_step_s:
                dataset.TemporalResolution = decimal(1000 * self.stored.frame_step_s)

    def _add_values(self, dataset: Dataset, values: CodedPlane) -> None:
        dataset.PixelRepresentation = int(values.stored.dtype.kind == "i")
        if self.sop_class != MR:
            dataset.RescaleIntercept, dataset.RescaleSlope = (
                decimal(values.intercept),
                decimal(values.slope),
            )
            if self.sop_class != CT or "RescaleType" in self.stored.metadata:
                dataset.RescaleType = self.stored.metadata.get("RescaleType", "US")
        dataset.DerivationDescription = "; ".join(derivation(self.stored, values.error))
