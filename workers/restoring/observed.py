"""Which voxels of a volume were observed: by its own gaps, and by a volume that is a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.derived import Box
from storage.errors import InvalidParameters
from storage.jobs import Progress
from storage.records import StoredVolume
from storage.volume import Volume
from workers.context import JobContext
from workers.restoring.boxes import Bools, Boxes, Frame, frames_of, shards_of

MASK = "/mask_volume_id"


@dataclass(frozen=True)
class Observed:
    """The voxels of a volume, and which of them were observed."""

    source: Boxes
    mask: Boxes | None = None
    mask_has_frames: bool = False
    mask_digest: str | None = None

    @classmethod
    def of(cls, context: JobContext, volume: Volume, mask_id: str | None, cache_bytes: int) -> Observed:
        """Raises InvalidParameters for a mask of another shape, MissingVolume, VolumeNotReady."""
        source = Boxes(context.volume_record, volume, cache_bytes)
        if mask_id is None:
            return cls(source)
        record = context.find_volume(mask_id)
        mask = context.open(record)
        shape, stored = mask.stored.array_shape, volume.stored
        if shape not in (stored.array_shape, stored.grid.shape):
            told = (
                f"its shape is {shape}, and neither that of the volume, {stored.array_shape}, nor of a frame"
            )
            raise InvalidParameters([(MASK, told)])
        return cls(source, Boxes(record, mask, cache_bytes), len(shape) == 4, mask.stored.digest)

    def __call__(self, frame: Frame, box: Box) -> Bools:
        """Of a box. Raises CorruptVolume."""
        seen = ~self.source.gaps(frame, box)
        if self.mask is not None:
            frame = frame if self.mask_has_frames else None
            seen &= (self.mask.values(frame, box) != 0) & ~self.mask.gaps(frame, box)
        return seen


def gaps_of(context: JobContext, stored: StoredVolume, observed: Observed) -> int:
    """How many voxels were not observed. Raises InvalidParameters where all of a frame were not."""
    boxes, frames, gaps = list(shards_of(stored.grid.shape)), frames_of(stored), 0
    for done, frame in enumerate(frames):
        missing = 0
        for number, box in enumerate(boxes):
            context.report(Progress("looking for gaps", done * len(boxes) + number, len(boxes) * len(frames)))
            missing += int(np.count_nonzero(~observed(frame, box)))
        if missing == stored.grid.voxels:
            which = "of the volume" if frame is None else f"of frame {frame}"
            raise InvalidParameters([(MASK, f"no voxel {which} was observed: nothing to fill it by")])
        gaps += missing
    return gaps


def refuse_whole(observed: Observed) -> None:
    """Raise InvalidParameters: there is nothing to fill."""
    told = "every voxel was observed" if observed.mask else "every voxel of the scan was finite"
    cure = "name a volume that is 0 where voxels are to be filled"
    raise InvalidParameters([(MASK, f"there are no gaps, {told}: {cure}")])
