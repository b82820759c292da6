"""Payloads of several parts, of blocks or slices: their number, their lengths, and one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import numpy as np

from storage.putt.varints import read_varint, varint


def together(parts: Sequence[bytes]) -> bytes:
    """The parts as one payload."""
    return b"".join([varint(len(parts)), *(varint(len(part)) for part in parts), *parts])


def apart(payload: bytes) -> list[bytes]:
    """The parts that `together` joined. Raises ValueError where they do not fill the payload."""
    count, at = read_varint(payload, 0)
    stops = [0]
    for _ in range(count):
        length, at = read_varint(payload, at)
        stops.append(stops[-1] + length)
    if at + stops[-1] != len(payload):
        raise ValueError(f"{count} parts of {stops[-1]} bytes in all do not fill {len(payload) - at} bytes")
    return [payload[at + start : at + stop] for start, stop in pairwise(stops)]


def grid(shape: tuple[int, ...], side: int) -> Iterator[tuple[int | slice, ...]]:
    """The places of blocks (z, y, x) in an array (z, y, x) or (t, z, y, x); the last ones are cut."""
    starts = [range(0, length, side) for length in shape[-3:]]
    for frame in np.ndindex(*shape[:-3]):
        for corner in product(*starts):
            yield (*frame, *(slice(start, start + side) for start in corner))
