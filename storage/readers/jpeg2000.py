"""Lossless JPEG 2000, decoded so that damage shows.

A JPEG 2000 decoder turns a damaged stream into a picture without a word, and clips it to the declared
precision. A sound reversible stream needs no clipping: it reconstructs the very samples that were encoded.
So the precision field of the codestream (SIZ marker, ITU-T T.800 A.5.1) is raised before decoding, which
moves the clipping out of reach and changes nothing else, as the reversible path takes its bit planes from
QCD; any sample outside the true precision then proves damage.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np

from storage.errors import InvalidScan
from storage.readers.base import Voxels

START = b"\xff\x4f\xff\x51"
WIDE_PRECISION = 24
REVERSIBLE_5_3 = 1


@dataclass(frozen=True)
class Codestream:
    """The main header of a codestream: size, samples, precision in bits, sign, wavelet."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    reversible: bool


def parse(stream: bytes) -> Codestream | None:
    """The main header, or None where the bytes do not start as a raw codestream does."""
    if not stream.startswith(START) or len(stream) < 44:
        return None
    length, _, right, bottom, left, top = struct.unpack_from(">HH4I", stream, 4)
    samples = struct.unpack_from(">H", stream, 40)[0]
    depth = stream[42]
    return Codestream(
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        reversible=_is_reversible(stream, 4 + length),
    )


def decode_lossless(stream: bytes, header: Codestream) -> Voxels:
    """The samples (rows, columns) of a reversible one-component codestream, as int32.

    Raises InvalidScan when the stream is damaged.
    """
    from openjpeg.utils import decode  # noqa: PLC0415 - native code, only where such a frame arrives

    sign = 0x80 if header.signed else 0
    widened = stream[:42] + bytes([sign | (WIDE_PRECISION - 1)]) + stream[43:]
    try:
        samples = decode(io.BytesIO(widened), j2k_format=0).astype(np.int32)
    except (RuntimeError, ValueError) as error:
        raise InvalidScan(f"JPEG 2000 stream cannot be decoded: {error}") from error
    half = 1 << (header.precision - 1)
    if not header.signed:
        samples += half - (1 << (WIDE_PRECISION - 1))
    low, high = (-half, half - 1) if header.signed else (0, 2 * half - 1)
    outside = int(np.count_nonzero((samples < low) | (samples > high)))
    if outside:
        raise InvalidScan(
            f"JPEG 2000 stream is damaged: {outside} pixels decode to values beyond {header.precision} bits"
        )
    return samples


def _is_reversible(stream: bytes, position: int) -> bool:
    """Whether the COD marker of the main header names the reversible 5/3 wavelet (T.800 A.6.1)."""
    while position + 4 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, position)
        if marker == 0xFF52:
            return position + 13 < len(stream) and stream[position + 13] == REVERSIBLE_5_3
        if marker == 0xFF90 or marker < 0xFF00 or length < 2:
            return False
        position += 2 + length
    return False
