"""Integers with a bound on every voxel: |x - x'| <= delta, and delta = 0 keeps every bit.

Two ways, with w = 2 delta + 1:

    plain   k = floor((x + delta) / w), packed without loss; x' = w k
    train   a prediction p, a block's train of integers decoded and rounded, and packed without loss
            q = floor((x - p + delta) / w); x' = p + w q

A prediction has the same bits on any machine (`storage.putt`): what is added meets the one that it was made
for. The volume as a whole is tried the plain way with each lossless compressor, and block by block both ways.
The smallest is kept: a file is at most a few bytes larger than that of the best plain compressor of k.

A payload is delta, a varint, and a byte for the way:

    0        blocks: their side, a varint, and parts, each with a way of its own
    1 + n    plain, by the n-th of `PACKERS`
    128 + n  train: its length, a varint, the train, the dtype of q in `DTYPES`, a byte, and q by the n-th
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import Framed, MissingPeer, Setting, UnsuitableValues, spread
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, grid, together
from storage.compressors.plain import BloscZstd, Zstandard
from storage.compressors.slices import Jpeg2000Lossless, JpegXlLossless
from storage.putt.block import block_bytes, block_values
from storage.putt.digits import Shape
from storage.putt.varints import read_varint, varint

Int64 = NDArray[np.int64]

BLOCKS, PLAIN, TRAIN = 0, 1, 128
PACKERS: tuple[Framed, ...] = (BloscZstd(), Zstandard(), Jpeg2000Lossless(), JpegXlLossless())
"""Their places are part of the format. Those whose library is not installed are not tried."""
DTYPES = [np.dtype(name) for name in ("<i1", "<i2", "<i4", "<i8")]
STEPS = (4.0, 16.0, 64.0)
"""Of trains, in w."""
HOPEFUL = 1.1
"""A train is packed if its q take so many times the plain way's bytes at most, by their entropy."""
MOST = 2**52
"""Predictions are made in float64."""
MOST_DELTA = 2**31


@dataclass(frozen=True)
class Bounded(Framed):
    """Blocks of `side` voxels along each axis where they help; those at the far faces are cut."""

    name: ClassVar[str] = "bounded"

    side: int = 64

    def setting(self, values: Array) -> Setting | None:
        """`delta`: no voxel's error is larger. 0 can be had too; fractions are left out."""
        return Setting("delta", 0.5, max(1.0, spread(values)))

    def number(self, values: Array, setting: dict[str, float]) -> float:
        """See `Framed`; 0 keeps every bit."""
        if setting.get("delta") == 0 and len(setting) == 1:
            return 0.0
        return super().number(values, setting)

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        delta = int(number)
        self._refuse(values, number)
        blocks = [_block(values[where], delta) for where in grid(values.shape, self.side)]
        in_blocks = bytes([BLOCKS]) + varint(self.side) + together(blocks)
        return varint(delta) + min(_plain(values, delta), in_blocks, key=len)

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        delta, at = read_varint(payload, 0)
        if payload[at] != BLOCKS:
            return _values(payload[at:], shape, dtype, delta)
        side, at = read_varint(payload, at + 1)
        values = np.empty(shape, dtype)
        for where, block in zip(grid(shape, side), apart(payload[at:]), strict=True):
            values[where] = _values(block, values[where].shape, dtype, delta)
        return values

    def _refuse(self, values: Array, number: float) -> None:
        """Raises UnsuitableValues for what is no integer or too large, and ValueError for such a bound."""
        if values.dtype.kind not in "iu":
            raise UnsuitableValues(
                f"{self.name} takes integers, not {values.dtype}: zfp bounds the errors of floats"
            )
        low, high = int(values.min()), int(values.max())
        if low < -MOST or high > MOST:
            raise UnsuitableValues(
                f"{self.name} takes values of 53 bits, these run from {low:,} to {high:,}: use blosc"
            )
        if number > MOST_DELTA:
            raise ValueError(f"{self.name}: delta = {number:g}: must be at most {MOST_DELTA:,}")


def _block(values: Array, delta: int) -> bytes:
    """A block (z, y, x), the way that takes the fewest bytes."""
    plain = _plain(np.ascontiguousarray(values), delta)
    train = _train(values, delta, HOPEFUL * len(plain))
    return plain if train is None else min(plain, train, key=len)


def _plain(values: Array, delta: int) -> bytes:
    number, packed = _smallest(quantised(values, delta))
    return bytes([PLAIN + number]) + packed


def quantised(values: Array, delta: int) -> Array:
    """k, of the source's dtype: integers that say where values are, to within delta."""
    return np.asarray(((values.astype(np.int64) + delta) // (2 * delta + 1)).astype(values.dtype))


def _train(values: Array, delta: int, most: float) -> bytes | None:
    """None where the entropy of what is to be added promises more than so many bytes."""
    expected, data, q = min(
        (_predicted(values, delta, times * (2 * delta + 1)) for times in STEPS), key=lambda trial: trial[0]
    )
    if expected > most:
        return None
    dtype = next(place for place, one in enumerate(DTYPES) if np.array_equal(q.astype(one), q))
    number, packed = _smallest(q.astype(DTYPES[dtype]))
    return bytes([TRAIN + number]) + varint(len(data)) + data + bytes([dtype]) + packed


def _predicted(values: Array, delta: int, step: float) -> tuple[float, bytes, Int64]:
    """A train and what is to be added to it, q; before them, the bytes that both take, q by its entropy."""
    data = block_bytes(values, step)
    z, y, x = values.shape
    told = block_values(data, (z, y, x), values.dtype).astype(np.int64)
    q = (values.astype(np.int64) - told + delta) // (2 * delta + 1)
    _, counts = np.unique(q, return_counts=True)
    return len(data) - float((counts * np.log2(counts / q.size)).sum()) / 8, data, q


def _smallest(values: Array) -> tuple[int, bytes]:
    """The place of the compressor that packs integers best, and what it wrote."""
    tried = []
    for place, packer in enumerate(PACKERS):
        try:
            tried.append((place, packer.packed(values, 0.0)))
        except (UnsuitableValues, MissingPeer):
            continue
    return min(tried, key=lambda one: len(one[1]))


def _values(data: bytes, shape: tuple[int, ...], dtype: Dtype, delta: int) -> Array:
    """Of a block, or of a volume that was packed the plain way."""
    way, width = data[0], 2 * delta + 1
    if way < TRAIN:
        return _within(width * PACKERS[way - PLAIN].unpacked(data[1:], shape, dtype).astype(np.int64), dtype)
    length, at = read_varint(data, 1)
    train, rest = data[at : at + length], data[at + length :]
    q = PACKERS[way - TRAIN].unpacked(rest[1:], shape, DTYPES[rest[0]]).astype(np.int64)
    return _within(block_values(train, _three(shape), dtype).astype(np.int64) + width * q, dtype)


def _three(shape: tuple[int, ...]) -> Shape:
    z, y, x = shape
    return z, y, x


def _within(values: Int64, dtype: Dtype) -> Array:
    """Kept within the source's dtype: that only brings them nearer."""
    limits = np.iinfo(dtype)
    return np.clip(values, max(limits.min, -MOST), min(limits.max, MOST)).astype(dtype)
