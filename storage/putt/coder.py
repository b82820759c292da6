"""A train of integers as bytes: a range coder, told by what is known already how large each integer may be.

Cores are coded from the last to the first, in groups of rows. An integer at (row j, digit d, column k) of
core b is expected to have the magnitude m, in sixteenths of an octave,

    m = w_0 + w_1 lg(rho_j) + w_2 c_k + w_3 lg(rho_j mean_{k-2..k+2} mu_dk) + w_4 lg(rho_j mean_d mu_dk),

rho_j = sigma_j / (step sqrt(numbers in the row)) what a row of unit norm gives, c_k the scale of its column's
direction (it is a row's at the next bond) over the root mean square of all columns, and mu_dk the mean of
the earlier rows' magnitudes at this place, in proportion to their rho, newer ones counting more. All of that
is integers, and sums and products of floats in an order that no machine changes. A class of expected
magnitudes, a quarter of an octave wide, has a table of probabilities (`tables`): none is learnt from the
train, which may be tiny.

Large integers leave their lowest bits out of it; those, signs, and what is beyond the tables stand plainly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import fsum, prod
from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from storage.putt.integer_train import OCTAVE, Float64, Int64, IntegerTrain, power
from storage.putt.tables import CLASSES, ESCAPE, FINENESS, FIRST_OCTAVE, TABLES
from storage.putt.varints import read_varint, varint

CONSTANT, ROW, COLUMN, NEAR, ALONG = -330, 109, 53, 95, 64
"""w_0 ... w_4, times 256."""
FLAT = 0.02
"""Added to magnitudes before their logarithm."""
MEMORY = 0.8
"""What a row counts for after the next one."""
MOST_ROWS = 8
"""Of a group."""
PLAIN_FROM = 3 * OCTAVE
"""Integers that are expected to be above 8 leave bits out."""
MOST_PLAIN = 48
MOST_SCALE = 40 * OCTAVE
"""A singular value of 2^40 steps."""
MODEL = constriction.stream.model.Categorical(perfect=False, lazy=True)
MANTISSAS = 512


def _mantissas() -> Int64:
    """16 log2(i / 512), rounded down, for i = 256 ... 511: between -16 and -1. By integers alone."""
    return np.array([(i**OCTAVE).bit_length() - 1 - 9 * OCTAVE for i in range(MANTISSAS // 2, MANTISSAS)])


LOGARITHMS = _mantissas()


def lg(values: Float64) -> Int64:
    """log2 of numbers above 0 in sixteenths of an octave, rounded down."""
    mantissas, octaves = np.frexp(values)
    return np.asarray(
        LOGARITHMS[(mantissas * MANTISSAS).astype(np.int64) - MANTISSAS // 2] + OCTAVE * octaves
    )


class Port(Protocol):
    """Where integers are written to, or read from."""

    def integers(self, expected: Int64, values: Int64 | None, *, signed: bool = True) -> Int64:
        """Integers of which these magnitudes are expected, in sixteenths of an octave."""


def encoded(train: IntegerTrain) -> bytes:
    """The cores and scales of a train; not its modes, step and offset."""
    port = _Writer()
    _passed(port, train.modes, train)
    return port.bytes()


def decoded(data: bytes, modes: tuple[int, ...]) -> tuple[tuple[Int64, ...], tuple[Int64, ...]]:
    """The cores and scales that `encoded` wrote. Raises ValueError for bytes that are none."""
    try:
        return _passed(_Reader(data), modes, None)
    except (IndexError, AssertionError, OverflowError) as error:
        raise ValueError(f"not a train of modes {modes}: {error}") from error


def _passed(
    port: Port, modes: tuple[int, ...], train: IntegerTrain | None
) -> tuple[tuple[Int64, ...], tuple[Int64, ...]]:
    """All numbers of a train through a port, the last core first: from it, or where there is none, to it."""
    cores: list[Int64] = []
    scales: list[Int64] = []
    columns, right = np.zeros(1, np.int64), 1
    for level in range(len(modes) - 1, -1, -1):
        own = None if train is None else train.cores[level]
        rows = np.zeros(1, np.int64)
        if level:
            known = None if train is None else train.scales[level - 1]
            most = min(prod(modes[:level]), modes[level] * right)
            rows = _scales(port, most, known)
            scales.append(rows)
        core = _core(port, (len(rows), modes[level], right), rows, columns, own, first=level == 0)
        cores.append(core)
        columns, right = rows, len(rows)
    return tuple(cores[::-1]), tuple(scales[::-1])


def _scales(port: Port, most: int, known: Int64 | None) -> Int64:
    """The scales of a bond's directions: they fall."""
    facts = None if known is None else np.array([len(known), known[0], known[0] - known[-1]])
    count, highest, fall = port.integers(np.array([80, 128, 96]), facts, signed=False).tolist()
    if not 1 <= count <= most:
        raise ValueError(f"{count} directions at a bond of at most {most}")
    if not 0 <= fall <= highest <= MOST_SCALE:
        raise ValueError(f"scales from {highest} down by {fall}: they are from 0 to {MOST_SCALE}")
    expected = lg(np.array([fall / max(count - 1, 1) + FLAT]))
    falls = None if known is None else -np.diff(known)
    told = port.integers(np.broadcast_to(expected, count - 1), falls, signed=False)
    scales = np.asarray(highest - np.concatenate([[0], np.cumsum(told)]))
    if scales[-1] != highest - fall or told.min(initial=0) < 0:
        raise ValueError("the scales do not fall by what was announced")
    return scales


def _core(
    port: Port,
    shape: tuple[int, int, int],
    rows: Int64,
    columns: Int64,
    known: Int64 | None,
    *,
    first: bool,
) -> Int64:
    """A core, group by group. The first has no rows' scales: its columns say how large it is."""
    _, mode, width = shape
    level = _half_lg(mode * width)
    relative = columns - (0 if first else _mean_scale(columns))
    row_scales = rows + (_half_lg(width) if first else 0) - level
    rho, inverse = power(row_scales), power(-row_scales)
    by_row = CONSTANT + ROW * lg(rho + FLAT)
    by_column = (256 if first else COLUMN) * relative
    core, sums, weight = np.empty(shape, np.int64), np.zeros((mode, width)), 0.0
    for group in _groups(shape[0]):
        earlier = sums / weight if weight else np.ones_like(sums)
        expected = by_row[group, None, None] + by_column
        for share, mean in ((NEAR, _near(earlier)), (ALONG, _along(earlier))):
            expected = expected + share * lg(mean * rho[group, None, None] + FLAT)
        core[group] = port.integers(expected >> 8, None if known is None else known[group])
        for row in range(group.start, group.stop):
            sums = MEMORY * sums + np.abs(core[row]) * inverse[row]
            weight = MEMORY * weight + 1
    return core


def _near(means: Float64) -> Float64:
    """Means over five neighbouring columns; at the ends the last one is repeated."""
    width = means.shape[1]
    wide = np.pad(means, ((0, 0), (2, 2)), mode="edge")
    total = wide[:, :width]
    for shift in range(1, 5):
        total = total + wide[:, shift : shift + width]
    return np.asarray(total / 5)


def _along(means: Float64) -> Float64:
    """Means over digits, (1, columns)."""
    total = means[:1]
    for digit in range(1, len(means)):
        total = total + means[digit : digit + 1]
    return np.asarray(total / len(means))


def _groups(rows: int) -> Iterator[slice]:
    """One row, one, two, four, then eight at a time."""
    start = 0
    while start < rows:
        stop = min(rows, start + min(max(1, start), MOST_ROWS))
        yield slice(start, stop)
        start = stop


def _half_lg(count: int) -> int:
    """16 log2(sqrt(count)), rounded down."""
    return int(count ** (OCTAVE // 2)).bit_length() - 1


def _mean_scale(scales: Int64) -> int:
    """The scale of the root mean square."""
    mean = fsum(np.square(power(scales)).tolist()) / len(scales)
    return int(lg(np.array([mean]))[0]) // 2


@dataclass(eq=False)
class _Writer:
    """Integers to bytes."""

    _coder: constriction.stream.queue.RangeEncoder = field(
        default_factory=constriction.stream.queue.RangeEncoder
    )
    _plain: list[NDArray[np.bool_]] = field(default_factory=list)
    _beyond: list[int] = field(default_factory=list)

    def integers(self, expected: Int64, values: Int64 | None, *, signed: bool = True) -> Int64:
        """See `Port`."""
        assert values is not None
        shifts, classes = _split(expected.ravel())
        flat = np.abs(values.ravel())
        high = flat >> shifts
        if len(flat):
            self._coder.encode(np.minimum(high, ESCAPE).astype(np.int32), MODEL, TABLES[classes])
        self._beyond += (high[high >= ESCAPE] - ESCAPE).tolist()
        for bit in range(int(shifts.max(initial=0))):
            self._plain.append((flat[shifts > bit] >> bit & 1).astype(np.bool_))
        if signed:
            self._plain.append(values.ravel()[flat > 0] < 0)
        return values

    def bytes(self) -> bytes:
        """What was written."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        plain = np.packbits(np.concatenate([*self._plain, np.empty(0, np.bool_)])).tobytes()
        return b"".join([varint(len(words)), words, varint(len(plain)), plain, *map(varint, self._beyond)])


class _Reader:
    """Bytes to integers. Raises IndexError or ValueError where they end too early."""

    def __init__(self, data: bytes) -> None:
        words, rest = _portion(data)
        plain, self._beyond = _portion(rest)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        self._plain = np.unpackbits(np.frombuffer(plain, np.uint8)).astype(np.int64)
        self._at = self._next = 0

    def integers(self, expected: Int64, values: Int64 | None, *, signed: bool = True) -> Int64:
        """See `Port`."""
        shifts, classes = _split(expected.ravel())
        if not len(shifts):
            return np.empty(expected.shape, np.int64)
        high = self._coder.decode(MODEL, TABLES[classes]).astype(np.int64)
        for number in np.flatnonzero(high == ESCAPE):
            beyond, self._next = read_varint(self._beyond, self._next)
            high[number] += beyond
        flat = high << shifts
        for bit in range(int(shifts.max(initial=0))):
            flat[shifts > bit] |= self._bits(int((shifts > bit).sum())) << bit
        if signed:
            marked = np.flatnonzero(flat > 0)
            flat[marked] *= 1 - 2 * self._bits(len(marked))
        return np.asarray(flat.reshape(expected.shape))

    def _bits(self, count: int) -> Int64:
        if self._at + count > len(self._plain):
            raise IndexError("its plain bits end too early")
        self._at += count
        return np.asarray(self._plain[self._at - count : self._at])


def _split(expected: Int64) -> tuple[Int64, Int64]:
    """How many bits are left out, and the class of what remains."""
    shifts = np.clip((expected - PLAIN_FROM) // OCTAVE, 0, MOST_PLAIN)
    classes = ((expected - OCTAVE * shifts - OCTAVE * FIRST_OCTAVE) * FINENESS) // OCTAVE
    return shifts, np.clip(classes, 0, CLASSES - 1)


def _portion(data: bytes) -> tuple[bytes, bytes]:
    """Bytes with their number before them, and what follows."""
    length, at = read_varint(data, 0)
    if length > len(data) - at:
        raise ValueError(f"{length} bytes announced, {len(data) - at} there")
    return data[at : at + length], data[at + length :]
