"""Coefficients as bytes: a range coder, told by what is known already how large each may be.

Levels pass from the coarsest to the finest, and within a level the phases of all bands together
(`bands.ORDER`). A class of expected magnitudes (`expected`), half an octave wide, has a table of
probabilities (`tables`): none is learnt from the block. The integers of a phase are coded class by class.

Integers that are expected to be 8 and more leave their lowest bits out of it; those, and signs, stand
plainly. What is beyond a table by r - 1 is told as the number of bits of r after its leading one, and these
plainly. What is coarsest passes first, as differences along the first axis, with one expectation for all. A
level of nothing but zeros is left out.

    varint    number of bytes of what is told of levels, and these: the mean magnitude of the differences as
              the place of its logarithm, 4 to the octave, from 2^-10 on; of each level whether it has any but
              zeros, and of the coarsest one, if so, its mean magnitude, 255 at most
    varint    number of bytes of the range coder's words, and these, 32 bits each, little-endian
    rest      plain bits, the first bit of a byte its highest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from storage.putt.varints import read_varint, varint
from storage.wavelet.bands import ORDER, Int32, Level, levels_of, phase
from storage.wavelet.expected import Expected, Float32, of_the_coarsest
from storage.wavelet.lifting import Shape, Split, corners
from storage.wavelet.tables import CLASSES, ESCAPE, FIRST_OCTAVE, LENGTHS, TABLES
from storage.wavelet.weights import FRACTION

Bools = NDArray[np.bool_]

LARGEST = 1 << 30
"""Magnitudes are below it."""
MODEL = constriction.stream.model.Categorical
MODELS = [MODEL(table, perfect=False) for table in TABLES]
LENGTH = MODEL(LENGTHS, perfect=False)
MANTISSA, EXPONENT_BIAS = 23, 127
HALVES = 2 * (EXPONENT_BIAS + FRACTION + FIRST_OCTAVE)
"""What the bits of a float32 say of the first class: its exponent, and the first bit behind the point."""
MOST_PLAIN = 26
QUARTERS = 4
ZERO_OCTAVE = 10
"""2^-10 is the least mean magnitude that is told of what is coarsest."""


class Port(Protocol):
    """Where integers are written to, or read from."""

    def told(self, number: int | None) -> int:
        """A number from 0 to 255."""

    def integers(self, expected: Float32, values: Int32 | None, inside: Bools | None) -> Int32:
        """Integers of which these magnitudes are expected; 0 outside of where they are."""


def encoded(coefficients: Int32, splits: Sequence[Split]) -> bytes:
    """Coefficients (z, y, x) below LARGEST, of levels that split these axes."""
    port = _Writer()
    z, y, x = coefficients.shape
    _passed(port, (z, y, x), splits, coefficients)
    return port.bytes()


def decoded(data: bytes, shape: Shape, splits: Sequence[Split]) -> Int32:
    """The coefficients that `encoded` wrote. Raises ValueError for bytes that are none."""
    try:
        return _passed(_Reader(data), shape, splits, None)
    except (IndexError, AssertionError, OverflowError) as error:
        raise ValueError(f"no coefficients of {shape} in {len(splits)} levels: {error}") from error


def _passed(port: Port, shape: Shape, splits: Sequence[Split], known: Int32 | None) -> Int32:
    """All coefficients through a port: from it, or where there are known ones, to it."""
    coefficients = np.zeros(shape, np.int32) if known is None else known
    corner = coefficients[tuple(map(slice, corners(shape, splits)[-1]))]
    corner[...] = _coarsest(port, corner, known is not None)
    before: Expected | None = None
    for level in reversed(levels_of(shape, splits)):
        before = _level(port, level, before, coefficients, known is not None)
    return coefficients


def _coarsest(port: Port, corner: Int32, is_known: bool) -> Int32:
    """What is coarsest, by its differences along the first axis."""
    known = np.diff(corner, axis=0, prepend=np.zeros_like(corner[:1])) if is_known else None
    place = port.told(None if known is None else _place(float(np.abs(known).mean())))
    mean = max(1.0, round(2.0 ** (FRACTION - ZERO_OCTAVE + place / QUARTERS)))
    differences = port.integers(np.full(corner.shape, mean, np.float32), known, None)
    return np.cumsum(differences, axis=0, dtype=np.int32)


def _place(mean: float) -> int:
    """Of a mean magnitude's logarithm."""
    return round(QUARTERS * max(0.0, ZERO_OCTAVE + log2(max(mean, 2.0**-ZERO_OCTAVE))))


def _level(
    port: Port, level: Level, before: Expected | None, coefficients: Int32, is_known: bool
) -> Expected:
    """A level of the coefficients, from the port or to it, after the next coarser one."""
    stack = level.taken(coefficients) if is_known else level.empty()
    is_there = port.told(int(stack.any()) if is_known else None)
    if before is None:
        mean = min(255, round(float(np.abs(stack).mean()))) if is_known else None
        coarser = of_the_coarsest(level, port.told(mean) if is_there else 0)
    else:
        coarser = before.known()
    expected = Expected(level, coarser)
    if is_there:
        for number in ORDER:
            inside = None if level.inside is None else phase(level.inside, number)
            own = phase(stack, number)
            told = port.integers(expected.of(number), own if is_known else None, inside)
            expected.learn(number, told)
            if not is_known:
                own[...] = told
        if not is_known:
            level.put(stack, coefficients)
    return expected


@dataclass(eq=False)
class _Writer:
    """Integers to bytes."""

    _coder: constriction.stream.queue.RangeEncoder = field(
        default_factory=constriction.stream.queue.RangeEncoder
    )
    _told: bytearray = field(default_factory=bytearray)
    _plain: list[Bools] = field(default_factory=list)

    def told(self, number: int | None) -> int:
        """See `Port`."""
        assert number is not None
        self._told.append(number)
        return number

    def integers(self, expected: Float32, values: Int32 | None, inside: Bools | None) -> Int32:
        """See `Port`."""
        assert values is not None
        shifts, classes = _split(expected, inside)
        flat = values.ravel()
        magnitudes = np.abs(flat)
        high = magnitudes if shifts is None else magnitudes >> shifts
        order, runs = _by_class(classes)
        symbols = np.minimum(high, ESCAPE)[order]
        for kind, start, stop in runs:
            self._coder.encode(symbols[start:stop], MODELS[kind])
        if symbols.max(initial=0) == ESCAPE:
            self._beyond(high[high >= ESCAPE] - (ESCAPE - 1))
        if shifts is not None:
            self._bits(magnitudes, shifts)
        self._plain.append(flat[magnitudes > 0] < 0)
        return values

    def _beyond(self, numbers: Int32) -> None:
        """Numbers above 0: their lengths, and what stands behind the leading bit."""
        lengths = (np.frexp(numbers)[1] - 1).astype(np.int32)
        self._coder.encode(lengths, LENGTH)
        self._bits(numbers, lengths)

    def _bits(self, numbers: Int32, counts: Int32) -> None:
        """So many lowest bits of each, the lowest of all first."""
        for bit in range(int(counts.max(initial=0))):
            self._plain.append((numbers[counts > bit] >> bit & 1).astype(np.bool_))

    def bytes(self) -> bytes:
        """What was written."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        plain = np.packbits(np.concatenate(self._plain)).tobytes()
        return b"".join([varint(len(self._told)), self._told, varint(len(words)), words, plain])


class _Reader:
    """Bytes to integers. Raises IndexError or ValueError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._told, rest = _portion(data)
        words, plain = _portion(rest)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        self._plain = np.unpackbits(np.frombuffer(plain, np.uint8))
        self._next = self._at = 0

    def told(self, number: int | None) -> int:
        """See `Port`."""
        self._next += 1
        return self._told[self._next - 1]

    def integers(self, expected: Float32, values: Int32 | None, inside: Bools | None) -> Int32:
        """See `Port`."""
        shifts, classes = _split(expected, inside)
        order, runs = _by_class(classes)
        symbols = np.zeros(len(order), np.int32)
        for kind, start, stop in runs:
            symbols[start:stop] = self._coder.decode(MODELS[kind], stop - start)
        flat = np.empty(len(order), np.int32)
        flat[order] = symbols
        if symbols.max(initial=0) == ESCAPE:
            escaped = (flat == ESCAPE).nonzero()[0]
            flat[escaped] += self._beyond(len(escaped)) - 1
        if shifts is not None:
            flat = (flat << shifts) + self._bits(shifts)
        marked = flat.nonzero()[0]
        flat[marked[self._flags(len(marked)) > 0]] *= -1
        return flat.reshape(expected.shape)

    def _beyond(self, count: int) -> Int32:
        lengths = np.asarray(self._coder.decode(LENGTH, count))
        return np.asarray(np.left_shift(1, lengths, dtype=np.int32) + self._bits(lengths))

    def _bits(self, counts: Int32) -> Int32:
        numbers = np.zeros(len(counts), np.int32)
        for bit in range(int(counts.max(initial=0))):
            longer = (counts > bit).nonzero()[0]
            numbers[longer] |= self._flags(len(longer)).astype(np.int32) << bit
        return numbers

    def _flags(self, count: int) -> NDArray[np.uint8]:
        if self._at + count > len(self._plain):
            raise IndexError("its plain bits end too early")
        self._at += count
        return self._plain[self._at - count : self._at]


def _split(expected: Float32, inside: Bools | None) -> tuple[Int32 | None, NDArray[np.uint8]]:
    """How many bits are left out, none if None, and the class of what remains: CLASSES outside."""
    halves = (expected.ravel().view(np.int32) >> MANTISSA - 1) - HALVES
    shifts: Int32 | None = None
    if halves.max(initial=0) >= CLASSES:
        shifts = np.clip(halves - CLASSES + 2 >> 1, 0, MOST_PLAIN)
        halves -= 2 * shifts
    classes = np.clip(halves, 0, CLASSES - 1).astype(np.uint8)
    if inside is not None:
        outside = ~inside.ravel()
        classes[outside] = CLASSES
        if shifts is not None:
            shifts[outside] = 0
    return shifts, classes


def _by_class(classes: NDArray[np.uint8]) -> tuple[NDArray[np.intp], list[tuple[int, int, int]]]:
    """The order in which the integers stand, by class, and (class, start, stop) of each that occurs."""
    order = np.argsort(classes, kind="stable")
    stops = np.cumsum(np.bincount(classes, minlength=CLASSES + 1)).tolist()[:CLASSES]
    starts = [0, *stops[:-1]]
    runs = zip(range(CLASSES), starts, stops, strict=True)
    return order, [(kind, start, stop) for kind, start, stop in runs if stop > start]


def _portion(data: bytes) -> tuple[bytes, bytes]:
    """Bytes with their number before them, and what follows."""
    length, at = read_varint(data, 0)
    if length > len(data) - at:
        raise ValueError(f"{length} bytes announced, {len(data) - at} there")
    return data[at : at + length], data[at + length :]
