"""A train of integers as bytes: a range coder, told by what is known already how large each integer may be.

Cores are coded from the last to the first, in groups of rows that double. An integer at (row j, digit d,
column k) of a core is expected to have the magnitude m, in sixteenths of an octave,

    m = w (lg(rho_j mean_{k-2..k+2} mu_dk) + lg(rho_j mean_d mu_dk)),

rho_j = 2^{s_j / 16} / sqrt(numbers in the row) from what was told of the row's norm, and mu_dk the mean of
the earlier rows' magnitudes at this place, in proportion to their rho, newer ones counting more. Before the
first row, mu is the scale of the column's direction (it is a row's of the next core) over the root mean
square of all columns. All of that is integers, and sums and products of floats in an order that no machine
changes. A class of expected magnitudes, a quarter of an octave wide, has a table of probabilities (`tables`):
none is learnt from the train, which may be tiny. The integers of a group are coded class by class.

Large integers leave their lowest bits out of it; those, signs, and what is beyond the tables stand plainly:

    varint    number of bytes of the range coder's words, and these, 32 bits each, little-endian
    varint    number of bytes of plain bits, and these, the first bit of a byte its highest: of each group
              the bits left out, the lowest of all its integers first, and then the signs of those that
              are not 0, 1 below it
    varints   what integers at the tables' end exceed it by

Before each core but the first stand its rows' norms, in quarters of an octave, without signs: their number,
the largest, by how much they fall in all, and each fall, expected as `_told_norms` has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import fsum, prod
from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from storage.putt.integer_train import OCTAVE, Float64, Int64, IntegerTrain, lg, power, scales_of
from storage.putt.tables import CLASSES, ESCAPE, FINENESS, FIRST_OCTAVE, TABLES
from storage.putt.varints import read_varint, varint

SHARE = 130
"""w, times 256."""
WITHOUT_ROWS = -20
"""Added to the first group's expectations: its columns' scales promise too much."""
FLAT = 0.02
"""Added to magnitudes before their logarithm."""
DECAY = 0.65
"""What a row counts for after the next one."""
REMEMBERED = 8
"""Rows that count, of a group."""
FIRST_ROWS, MOST_ROWS = 2, 64
"""Of a group."""
PLAIN_FROM = 2 * OCTAVE
"""Integers that are expected to be above 4 leave bits out."""
MOST_PLAIN = 48
OCTAVE_BITS = (OCTAVE - 1).bit_length()
CLASS_BITS = (OCTAVE // FINENESS - 1).bit_length()
QUARTER = OCTAVE // 4
"""Steps in which norms of rows are told."""
MOST_SCALE = 160
"""A norm of 2^40, in quarters of an octave."""
FRACTION = 20
"""Bits of what a row is weighed with."""
MODEL = constriction.stream.model.Categorical
MODELS = [MODEL(table, perfect=False) for table in TABLES]


class Port(Protocol):
    """Where integers are written to, or read from."""

    def integers(self, expected: Int64, values: Int64 | None, *, signed: bool = True) -> Int64:
        """Integers of which these magnitudes are expected, in sixteenths of an octave."""


def encoded(train: IntegerTrain) -> bytes:
    """The cores of a train; not its modes, step and offset. Its rows' norms fall, and are below 2^40."""
    port = _Writer()
    _passed(port, train.modes, train)
    return port.bytes()


def decoded(data: bytes, modes: tuple[int, ...]) -> tuple[Int64, ...]:
    """The cores that `encoded` wrote. Raises ValueError for bytes that are none."""
    try:
        return _passed(_Reader(data), modes, None)
    except (IndexError, AssertionError, OverflowError) as error:
        raise ValueError(f"not a train of modes {modes}: {error}") from error


def _passed(port: Port, modes: tuple[int, ...], train: IntegerTrain | None) -> tuple[Int64, ...]:
    """All numbers of a train through a port, the last core first: from it, or where there is none, to it."""
    cores: list[Int64] = []
    columns = np.zeros(1, np.int64)
    for level in range(len(modes) - 1, 0, -1):
        own = None if train is None else train.cores[level]
        most = min(prod(modes[:level]), modes[level] * len(columns))
        rows = _told_norms(port, most, None if own is None else scales_of(own) // QUARTER)
        scales = rows * QUARTER + QUARTER // 2 - _half_lg(modes[level] * len(columns))
        cores.append(_core(port, modes[level], scales, columns, own))
        columns = scales_of(cores[-1])
    own = None if train is None else train.cores[0]
    cores.append(_core(port, modes[0], np.array([_mean_scale(columns)]), columns, own))
    return tuple(cores[::-1])


def _told_norms(port: Port, most: int, known: Int64 | None) -> Int64:
    """The norms of a core's rows, in quarters of an octave: they fall."""
    facts = None if known is None else np.array([len(known), known[0], known[0] - known[-1]])
    count, highest, fall = port.integers(np.array([80, 96, 64]), facts, signed=False).tolist()
    if not 1 <= count <= most:
        raise ValueError(f"{count} directions at a bond of at most {most}")
    if not 0 <= fall <= highest <= MOST_SCALE:
        raise ValueError(f"norms from {highest} down by {fall}: they are from 0 to {MOST_SCALE}")
    expected = lg(np.array([fall / max(count - 1, 1) + FLAT]))
    falls = None if known is None else -np.diff(known)
    told = port.integers(np.broadcast_to(expected, count - 1), falls, signed=False)
    norms = np.asarray(highest - np.concatenate([[0], np.cumsum(told)]))
    if norms[-1] != highest - fall or told.min(initial=0) < 0:
        raise ValueError("the norms do not fall by what was announced")
    return norms


def _core(port: Port, mode: int, rows: Int64, columns: Int64, known: Int64 | None) -> Int64:
    """A core (rows, mode, columns), group by group; `rows` are lg(rho)."""
    core = np.empty((len(rows), mode, len(columns)), np.int64)
    past = _Past(np.tile(power(columns - _mean_scale(columns)), (mode, 1)))
    weights = np.rint(np.ldexp(power(-rows), FRACTION))
    rho = power(rows)
    for group in _groups(len(rows)):
        start = group.start
        expected = (past.expected(rho[start]) + (0 if start else 256 * WITHOUT_ROWS)).astype(np.int32)
        relative = (2 * SHARE * (rows[group] - rows[start])).astype(np.int32)
        told = port.integers(expected + relative[:, None, None] >> 8, None if known is None else known[group])
        core[group] = told
        past.add(told, weights[group])
    return core


@dataclass
class _Past:
    """mu: sums over rows, (mode, columns), and what they have counted for."""

    sums: Float64
    count: float = 1.0

    def expected(self, rho: float) -> Int64:
        """256 m of a row of this rho, (mode, columns)."""
        mean = self.sums * (rho / self.count)
        near, along = _near(mean), _over_digits(mean)
        return np.asarray(SHARE * (lg(near + FLAT) + lg(along + FLAT)))

    def add(self, rows: Int64, weights: Float64) -> None:
        """Rows (rows, mode, columns) that became known; weights are whole numbers, 2^FRACTION / rho."""
        late = min(len(rows), REMEMBERED)
        decays = _decays(late)
        fixed = np.rint(weights[-late:] * decays)
        exact = fixed @ np.abs(rows[-late:]).reshape(late, -1).astype(np.float64)
        forgotten = _decays(len(rows) + 1)[0]
        self.sums = self.sums * forgotten + np.ldexp(exact, -FRACTION).reshape(self.sums.shape)
        self.count = self.count * forgotten + fsum(decays)


@cache
def _decays(count: int) -> Float64:
    """What rows count for, the last one 1; by products alone."""
    decays = [1.0]
    while len(decays) < count:
        decays.append(decays[-1] * DECAY)
    return np.array(decays[::-1])


def _near(means: Float64) -> Float64:
    """Means over five neighbouring columns; at the ends the last one is repeated."""
    first, last = means[:, :1], means[:, -1:]
    wide = np.concatenate([first, first, means, last, last], axis=1)
    pairs = wide[:, :-1] + wide[:, 1:]
    return np.asarray((pairs[:, :-3] + pairs[:, 2:-1] + wide[:, 4:]) * 0.2)


def _over_digits(means: Float64) -> Float64:
    """Means over digits, (1, columns)."""
    total = means
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    return total / len(means)


def _groups(rows: int) -> Iterator[slice]:
    """Two rows, two, four, and so on."""
    start = 0
    while start < rows:
        stop = min(rows, start + min(max(FIRST_ROWS, start), MOST_ROWS))
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
        high = flat if shifts is None else flat >> shifts
        symbols = np.minimum(high, ESCAPE).astype(np.int32)
        order, runs = _by_class(classes)
        symbols = symbols[order]
        for kind, start, stop in runs:
            self._coder.encode(symbols[start:stop], MODELS[kind])
        if symbols.max(initial=0) == ESCAPE:
            self._beyond += (high[high >= ESCAPE] - ESCAPE).tolist()
        if shifts is not None:
            for bit in range(int(shifts.max())):
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
        self._plain = np.unpackbits(np.frombuffer(plain, np.uint8))
        self._at = self._next = 0

    def integers(self, expected: Int64, values: Int64 | None, *, signed: bool = True) -> Int64:
        """See `Port`."""
        shifts, classes = _split(expected.ravel())
        order, runs = _by_class(classes)
        flat = np.empty(len(order), np.int64)
        symbols = [self._coder.decode(MODELS[kind], stop - start) for kind, start, stop in runs]
        if symbols:
            flat[order] = np.concatenate(symbols)
        for number in (flat == ESCAPE).nonzero()[0].tolist():
            beyond, self._next = read_varint(self._beyond, self._next)
            flat[number] += beyond
        if shifts is not None:
            flat <<= shifts
            for bit in range(int(shifts.max())):
                longer = (shifts > bit).nonzero()[0]
                flat[longer] |= self._bits(len(longer)).astype(np.int64) << bit
        if signed:
            marked = flat.nonzero()[0]
            flat[marked[self._bits(len(marked)) > 0]] *= -1
        return flat.reshape(expected.shape)

    def _bits(self, count: int) -> NDArray[np.uint8]:
        if self._at + count > len(self._plain):
            raise IndexError("its plain bits end too early")
        self._at += count
        return self._plain[self._at - count : self._at]


def _split(expected: Int64) -> tuple[Int64 | None, NDArray[np.uint8]]:
    """How many bits are left out, none if None, and the class of what remains."""
    shifts = None
    if len(expected) and expected.max() >= PLAIN_FROM + OCTAVE:
        shifts = np.minimum(np.maximum(expected - PLAIN_FROM >> OCTAVE_BITS, 0), MOST_PLAIN)
        expected = expected - (shifts << OCTAVE_BITS)
    classes = expected - OCTAVE * FIRST_OCTAVE >> CLASS_BITS
    return shifts, np.minimum(np.maximum(classes, 0), CLASSES - 1).astype(np.uint8)


def _by_class(classes: NDArray[np.uint8]) -> tuple[NDArray[np.intp], list[tuple[int, int, int]]]:
    """The order in which the integers stand, by class, and (class, start, stop) of each that occurs."""
    order = np.argsort(classes, kind="stable")
    stops = np.cumsum(np.bincount(classes, minlength=CLASSES)).tolist()
    starts = [0, *stops[:-1]]
    return order, [
        (kind, start, stop)
        for kind, (start, stop) in enumerate(zip(starts, stops, strict=True))
        if stop > start
    ]


def _portion(data: bytes) -> tuple[bytes, bytes]:
    """Bytes with their number before them, and what follows."""
    length, at = read_varint(data, 0)
    if length > len(data) - at:
        raise ValueError(f"{length} bytes announced, {len(data) - at} there")
    return data[at : at + length], data[at + length :]
