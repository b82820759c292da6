"""Wanted voxels to their features: cover them by boxes, read those, and encode them batch by batch.

Boxes of all scans that share a network go through it together, those of one shape in one batch. Convolutions
round the odd ends of batches differently, so batches are filled up to a multiple: a box has the same features
whatever is encoded beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.cpic.encoder import Encoder
from models.cpic.geometry import POINT, Boxes, Sides, cover
from models.cpic.raw_boxes import RawBoxes, plain
from models.errors import ModelError, NonFiniteSample, SampleOutOfRange
from models.types import Array, Int64

FETCH_BYTES = 64 << 20
"""Raw boxes asked of the source at once, as float64: it groups them by chunk."""
ENCODE_BATCH = 256
"""Points that are encoded at once, or as many larger boxes as take their memory: layers stay in caches.
A gradient through batches of 2,048 takes 1.6 times as long.
"""
POINT_NUMBERS = 5_120
"""Numbers in the layers of a point, as batches are measured: about those of the paper's network."""
MOST_POINTS = 64
"""Times the points of a batch that a batch of whichever boxes has at most."""
POINT_MULTIPLE, BOX_MULTIPLE = 16, 2


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume, and the encoder that looks at it."""

    boxes: RawBoxes
    encoder: Encoder
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels, (z, y, x)."""
        return self.boxes.source.shape


@dataclass(frozen=True, eq=False)
class Batch:
    """Boxes of one shape, standardised; those of one scan stand together.

    The wanted voxel `rows[i]` is output `at[i]`, counted through all boxes.
    """

    encoder: Encoder
    inputs: Float[Tensor, "n c z y x"]
    rows: Int64
    at: Int64

    def features(self) -> Float[Tensor, "m f"]:
        """The features of the wanted voxels in this batch, those of `rows`."""
        outputs = self.encoder.encoded(self.inputs)
        voxels = outputs.flatten(2).transpose(1, 2).reshape(-1, outputs.shape[1])
        return voxels[torch.from_numpy(self.at).to(voxels.device)]


def batches(scans: Sequence[Scan], voxels: Sequence[Int64], points: int = ENCODE_BATCH) -> Iterator[Batch]:
    """Batches that together hold each of the distinct voxels of each scan once.

    Rows count through the voxels of the first scan, then those of the second, and so on. A batch takes the
    memory of about `points` points. Raises SourceFailed and NonFiniteSample, naming the scan where there are
    several.
    """
    first_rows = np.cumsum([0, *map(len, voxels)])
    found: dict[tuple[int, Sides], list[tuple[int, Boxes]]] = {}
    for owner, (scan, wanted) in enumerate(zip(scans, voxels, strict=True)):
        network = scan.encoder if scan.encoder.network is None else scan.encoder.network
        for boxes in cover(wanted, scan.shape, scan.encoder.work):
            mine = replace(boxes, rows=boxes.rows + first_rows[owner])
            found.setdefault((id(network), boxes.sides), []).append((owner, mine))
    for owned in found.values():
        yield from _of_one_shape(scans, owned, points)


def shares(rows: Int64, sizes: Sequence[int]) -> Iterator[tuple[int, slice, Int64]]:
    """(owner, which of a batch's rows are its own, their numbers among its voxels) for each scan in it.

    `sizes` are the numbers of voxels of all scans.
    """
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, rows, side="right")
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    for low, high in pairwise([*first.tolist(), len(rows)]):
        owner = int(owners[low])
        yield owner, slice(low, high), rows[low:high] - (int(ends[owner]) - sizes[owner])


def check(values: Float[Tensor, "m f"], voxels: Int64, scan: Scan) -> None:
    """Raise NonFiniteSample or SampleOutOfRange, naming the voxel, for features that no encoder gives."""
    low, high = scan.encoder.value_range
    inside = (values >= low) & (values <= high)  # NaN is outside
    if bool(inside.all()):
        return
    row, feature = divmod(int(inside.flatten().int().argmin()), values.shape[1])
    voxel, value = plain(np.array(np.unravel_index(voxels[row], scan.shape))), float(values[row, feature])
    if np.isfinite(value):
        raise SampleOutOfRange(voxel, value, low, high)
    raise NonFiniteSample(voxel, value)


@contextmanager
def naming(owner: int, scans: Sequence[Scan]) -> Iterator[None]:
    """Add to an error which of several scans it is about: in front of its text, and as its `volume`."""
    try:
        yield
    except ModelError as error:
        if len(scans) > 1:
            error.args = (f"volume {owner}: {error}",)
            vars(error)["volume"] = owner
        raise


def _of_one_shape(scans: Sequence[Scan], owned: Sequence[tuple[int, Boxes]], points: int) -> Iterator[Batch]:
    """Batches of boxes of one shape for one network; each scan in `owned` has some, one after the other."""
    (first_owner, first_boxes), outputs = owned[0], prod(owned[0][1].sides)
    encoder, sides = scans[first_owner].encoder, first_boxes.sides
    starts = np.cumsum([0, *(len(boxes) for _, boxes in owned)])
    rows = np.concatenate([boxes.rows for _, boxes in owned])
    at = np.concatenate(
        [boxes.at + start * outputs for start, (_, boxes) in zip(starts[:-1], owned, strict=True)]
    )
    step = _boxes_per_batch(encoder, sides, points)
    fetched = step * max(
        1, FETCH_BYTES // (8 * scans[first_owner].boxes.source.channels * encoder.work(sides).voxels * step)
    )
    for start in range(0, int(starts[-1]), fetched):
        raw = _raw(scans, owned, starts, slice(start, start + fetched))
        for low in range(start, min(start + fetched, int(starts[-1])), step):
            here = slice(*np.searchsorted(at, [low * outputs, (low + step) * outputs]))
            inputs = _standardised(raw, low - start, low - start + step, _multiple(sides))
            yield Batch(encoder, inputs, rows[here], at[here] - low * outputs)


def _boxes_per_batch(encoder: Encoder, sides: Sides, points: int) -> int:
    """How many boxes take the memory of so many points; a multiple of what batches are filled up to."""
    multiple = _multiple(sides)
    boxes = min(points * POINT_NUMBERS // encoder.work(sides).numbers, points * MOST_POINTS)
    return max(multiple, boxes // multiple * multiple)


def _multiple(sides: Sides) -> int:
    return POINT_MULTIPLE if sides == POINT else BOX_MULTIPLE


def _raw(
    scans: Sequence[Scan], owned: Sequence[tuple[int, Boxes]], starts: Int64, portion: slice
) -> list[tuple[Scan, Array]]:
    """The boxes number `portion`, read, scan by scan."""
    raw = []
    for start, (owner, boxes) in zip(starts.tolist(), owned, strict=False):
        corners = boxes.corners[max(portion.start - start, 0) : max(portion.stop - start, 0)]
        if len(corners):
            margin = scans[owner].encoder.cube_size - 1
            z, y, x = boxes.sides
            with naming(owner, scans):
                read = scans[owner].boxes.read(corners - margin // 2, (z + margin, y + margin, x + margin))
            raw.append((scans[owner], read))
    return raw


def _standardised(
    raw: Sequence[tuple[Scan, Array]], low: int, high: int, multiple: int
) -> Float[Tensor, "n c z y x"]:
    """The boxes from `low` to `high`, as the network takes them, filled up with zeros."""
    parts, start = [], 0
    for scan, boxes in raw:
        some = boxes[max(low - start, 0) : max(high - start, 0)]
        if len(some):
            values = torch.from_numpy(some.astype(np.float64)).to(scan.device)
            parts.append(scan.encoder.standardised(values))
        start += len(boxes)
    missing = -sum(map(len, parts)) % multiple
    return torch.cat([*parts, parts[0].new_zeros(missing, *parts[0].shape[1:])])
