"""Pixels of DICOM frames, one at a time, decoded by pydicom and its plugins, checked before and after."""

from __future__ import annotations

import math
import struct
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np

from storage.errors import InvalidScan
from storage.readers import jpeg2000
from storage.readers.archives import Member, Tree, damage_named
from storage.readers.base import Limits, Voxels
from storage.readers.dicom_instance import Instance, PixelLayout, Plane, decoder_errors, open_plain

JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0"
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG or JPEG-LS frame header (ITU-T T.81 table B.1, T.87)."""
Span = list[tuple[int, int]]


class PixelReader:
    """Decodes planes; keeps one file open and one decoded frame, as neighbours often share both."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self._tree, self._limits = tree, limits
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._instance: Instance | None = None
        self._spans: list[Span] = []
        self._frame: tuple[int, Voxels] | None = None

    def stored(self, plane: Plane) -> Voxels:
        """The stored pixels of a plane, (rows, columns) or (rows, columns, samples).

        Raises InvalidScan, with the file's name, when they do not decode to what the header says.
        """
        with damage_named(plane.instance.member), decoder_errors(plane.instance.member):
            picture = self._picture(plane.instance, plane.frame)
        if plane.tile is None:
            return picture
        rows, columns = plane.size
        down, across = divmod(plane.tile, picture.shape[1] // columns)
        return picture[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]

    def close(self) -> None:
        """Let go of the file."""
        self._open.close()
        self._instance = self._frame = None

    def _picture(self, instance: Instance, frame: int) -> Voxels:
        if instance is not self._instance:
            self._turn_to(instance)
        if self._frame is None or self._frame[0] != frame:
            self._frame = frame, self._decode(instance, frame)
        return self._frame[1]

    def _turn_to(self, instance: Instance) -> None:
        self.close()
        file = self._open.enter_context(open_plain(self._tree, instance.member, self._limits))
        self._file, self._instance = file, instance
        if instance.pixels.length is None:
            self._spans = frame_spans(file, instance.pixels, instance.member)

    def _decode(self, instance: Instance, frame: int) -> Voxels:
        assert self._file is not None
        layout = instance.pixels
        if layout.length is None:
            picture = _decode_packed(_joined(self._file, self._spans[frame]), layout, instance.member)
        elif layout.allocated == 1:
            picture = _decode_bits(self._file, layout, frame)
        else:
            picture = _decode_native(self._file, layout, frame)
        expected = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, 3)
        if picture.shape != expected:
            raise InvalidScan(
                f"{instance.member.told} decodes to {picture.shape}, the header says {expected}"
            )
        return picture.astype(layout.dtype, copy=False)


def frame_spans(file: BinaryIO, layout: PixelLayout, member: Member) -> list[Span]:
    """Where each frame lies in encapsulated pixel data (PS3.5 A.4): (offset, length) of its fragments."""
    offsets, fragments = _fragments(file, layout, member)
    if layout.frames == 1:
        return [[(start, length) for _, start, length in fragments]]
    if len(fragments) == layout.frames:
        return [[(start, length)] for _, start, length in fragments]
    if len(offsets) != layout.frames:
        raise InvalidScan(
            f"{member.told}: {len(fragments)} fragments, {layout.frames} frames, and no table to match them"
        )
    ends = [*offsets[1:], math.inf]
    return [
        [(start, length) for place, start, length in fragments if first <= place < end]
        for first, end in zip(offsets, ends, strict=True)
    ]


def _fragments(
    file: BinaryIO, layout: PixelLayout, member: Member
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The basic offset table, and (offset as it counts, offset in the file, length) of each fragment."""
    file.seek(layout.offset)
    items: list[tuple[int, int]] = []
    while (head := file.read(8))[:4] == ITEM and len(head) == 8:
        length = struct.unpack("<L", head[4:])[0]
        items.append((file.tell(), length))
        file.seek(length, 1)
    if head[:4] != SEQUENCE_END:
        raise InvalidScan(f"{member.told}: the compressed pixel data end early; send the whole file")
    if len(items) < 2:
        raise InvalidScan(f"{member.told}: no compressed pixel data")
    start, length = items[0]
    file.seek(start)
    table = file.read(length)
    offsets = list(struct.unpack(f"<{len(table) // 4}L", table[: len(table) // 4 * 4]))
    origin = items[1][0] - 8
    return offsets, [(place - 8 - origin, place, size) for place, size in items[1:]]


def _joined(file: BinaryIO, span: Span) -> bytes:
    parts = []
    for start, length in span:
        file.seek(start)
        parts.append(file.read(length))
    return b"".join(parts)


def _decode_packed(frame: bytes, layout: PixelLayout, member: Member) -> Voxels:
    """One compressed frame. Its own idea of its size must be the header's, before anything is allocated."""
    from pydicom.encaps import encapsulate  # noqa: PLC0415 - slow to import
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415

    size = _codestream_size(frame)
    if size is not None and size != (layout.rows, layout.columns):
        raise InvalidScan(
            f"{member.told}: the compressed picture is {size[0]} x {size[1]}, the header says "
            f"{layout.rows} x {layout.columns}"
        )
    header = jpeg2000.parse(frame)
    if layout.syntax == JPEG_2000_LOSSLESS and header and _plainly_lossless(header, layout):
        try:
            return jpeg2000.decode_lossless(frame, header)
        except InvalidScan as error:
            raise InvalidScan(f"{member.told}: {error}") from error
    options = {**_options(layout), "number_of_frames": 1}
    return np.asarray(get_decoder(layout.syntax).as_array(encapsulate([frame]), index=0, **options)[0])


def _plainly_lossless(header: jpeg2000.Codestream, layout: PixelLayout) -> bool:
    return (
        header.reversible
        and header.samples == layout.samples == 1
        and header.precision == layout.stored <= 16
        and header.signed == layout.signed
    )


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it is none of these."""
    header = jpeg2000.parse(frame)
    if header is not None:
        return header.rows, header.columns
    if not frame.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], struct.unpack_from(">H", frame, position + 2)[0]
        if marker in JPEG_FRAMES:
            rows, columns = struct.unpack_from(">HH", frame, position + 5)
            return rows, columns
        position += 1 if marker == 0xFF else 2 + length
    return None


def _decode_bits(file: BinaryIO, layout: PixelLayout, frame: int) -> Voxels:
    """One frame of bit-packed pixels; frames follow each other without padding (PS3.5 8.1.1)."""
    count = layout.rows * layout.columns * layout.samples
    first, last = frame * count, (frame + 1) * count
    file.seek(layout.offset + first // 8)
    packed = np.frombuffer(file.read(-(-last // 8) - first // 8), np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + count]
    return bits.reshape(layout.rows, layout.columns)


def _decode_native(file: BinaryIO, layout: PixelLayout, frame: int) -> Voxels:
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - slow to import

    file.seek(layout.offset)
    return np.asarray(get_decoder(layout.syntax).as_array(file, index=frame, **_options(layout))[0])


def _options(layout: PixelLayout) -> dict[str, Any]:
    """What pydicom's decoders want to know of the pixels."""
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.allocated,
        "number_of_frames": layout.frames,
        "pixel_keyword": layout.keyword,
        "pixel_vr": layout.vr,
    }
    if layout.keyword == "PixelData":
        options |= {"bits_stored": layout.stored, "pixel_representation": int(layout.signed)}
    if layout.samples > 1:
        options["planar_configuration"] = layout.planar
    return options
