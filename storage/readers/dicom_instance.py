"""One DICOM file (PS3.10) as plain facts: its planes, how their pixels are coded, and what may be kept of it.

Only the header is read, within bounds; pixel data are found, measured and left where they are.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np

from storage.errors import InvalidScan, ScanTooLarge, StorageError, UnsupportedScan
from storage.readers.archives import Member, Tree, damage_named
from storage.readers.base import Limits, Voxels
from storage.readers.rescale import Rescale

PREAMBLE_BYTES = 128
MARKER = b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM_BYTES = 8
"""What the header of one fragment takes (PS3.5 A.4)."""
ELEMENT_BYTES = 64 << 20
"""Longest single header element that is read."""
HEADER_BYTES = 256 << 20
"""Longest header that is read."""
Vector = tuple[float, ...]


@dataclass(frozen=True)
class PixelLayout:
    """How the frames of one file are coded (PS3.3 C.7.6.3). `offset` is that of the pixel element's value."""

    syntax: str
    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    signed: bool
    frames: int
    keyword: str
    vr: str
    offset: int
    length: int | None
    """Bytes of the value; None where it is encapsulated."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The native type of a stored pixel."""
        if self.keyword != "PixelData":
            return np.dtype(np.float32 if self.keyword == "FloatPixelData" else np.float64)
        bits = max(8, self.allocated)
        return np.dtype(f"{'i' if self.signed else 'u'}{bits // 8}")

    @property
    def native_bytes(self) -> int:
        """Bytes that all frames need uncompressed."""
        bits = self.rows * self.columns * self.samples * self.frames * self.allocated
        return -(-bits // 8) * 2 // 3 if self.photometric == "YBR_FULL_422" else -(-bits // 8)


@dataclass(frozen=True)
class ModalityLut:
    """A table in place of slope and intercept (PS3.3 C.11.1): stored pixel `first + i` means entry i."""

    first: int
    entries: Voxels

    def apply(self, stored: Voxels) -> Voxels:
        """Real values; pixels outside of the table take its nearest entry."""
        places = np.clip(stored.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[places]


@dataclass(frozen=True)
class Plane:
    """One slice: where its pixels are, where it lies (LPS, mm), and what tells it from others there.

    `size` is (rows, columns). `tile` is the place of the slice in a mosaic. `times` and `kinds` are named
    marks, such as the temporal position or the echo time.
    """

    instance: Instance
    frame: int
    size: tuple[int, int]
    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    thickness: float | None
    rescale: Rescale
    times: dict[str, float | str] = field(default_factory=dict)
    kinds: dict[str, float | str] = field(default_factory=dict)
    tile: int | None = None

    @property
    def name(self) -> str:
        """How to speak of this slice to the one who sent it."""
        frames = self.instance.pixels.frames
        return (
            self.instance.member.told
            if frames == 1
            else f"{self.instance.member.told}, frame {self.frame + 1}"
        )


@dataclass(frozen=True, eq=False)
class Instance:
    """One file with pixels. `number` is InstanceNumber.

    `uid`, `series`, `study` and `frame_of_reference` identify, and are kept only as they are replaced
    (storage/dicom_uids.py).
    """

    member: Member
    uid: str
    series: str
    study: str
    frame_of_reference: str
    number: int
    modality: str
    pixels: PixelLayout
    lut: ModalityLut | None
    metadata: dict[str, Any]
    step_s: float | None
    temporal_positions: int | None


def is_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes are those of a PS3.10 file."""
    return head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == MARKER


def read_header(tree: Tree, member: Member, limits: Limits) -> tuple[Any, PixelLayout] | None:
    """pydicom's dataset up to the pixels, and their layout; None where the file is a document without pixels.

    Raises InvalidScan for a damaged file, ScanTooLarge, UnsupportedScan.
    """
    with damage_named(member), decoder_errors(member), open_plain(tree, member, limits, once=True) as file:
        import pydicom  # noqa: PLC0415 - slow to import

        bounded = _Bounded(file)
        dataset = pydicom.dcmread(cast(BinaryIO, bounded), stop_before_pixels=True)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        found = _pixel_element(bounded, dataset, syntax)
        if found is None:
            if bounded.short or "Rows" in dataset:
                cause = "it is truncated" if bounded.short else "it has no pixel data"
                raise InvalidScan(f"{member.told} cannot be used: {cause}; send the whole file")
            return None
        return dataset, _layout(dataset, syntax, member, found, limits)


@contextmanager
def open_plain(tree: Tree, member: Member, limits: Limits, *, once: bool = False) -> Iterator[BinaryIO]:
    """A file's bytes, seekable (only slowly backwards when `once`); a deflated data set comes inflated."""
    with (tree.stream if once else tree.open)(member) as file:
        syntax, start = _transfer_syntax(file)
        if syntax != DEFLATED:
            file.seek(0)
            yield file
            return
        file.seek(start)
        with tempfile.SpooledTemporaryFile(32 << 20) as inflated:
            _inflate(file, cast(BinaryIO, inflated), limits)
            inflated.seek(0)
            yield cast(BinaryIO, inflated)


@contextmanager
def decoder_errors(member: Member) -> Iterator[None]:
    """Turn whatever pydicom and its plugins make of hostile bytes into InvalidScan with the file's name.

    A panic of a plugin written in Rust is no `Exception`; an OSError without a number is not the system's,
    but pydicom's own word for bytes that break off. Errors and logs of pydicom quote values that it does not
    like, and they may identify a patient: neither is told, nor chained to what is raised.
    """
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except StorageError:
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise InvalidScan(f"{member.told} is damaged: {_without_values(error)}") from None
    finally:
        logger.disabled = disabled


def _without_values(error: BaseException) -> str:
    """An error's kind, and what it was about: an attribute's name, or the function that raised it."""
    if isinstance(error, AttributeError) and error.name:
        return f"it has no {error.name}"
    trace, kind = error.__traceback__, type(error).__name__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return kind if trace is None else f"{kind} in {trace.tb_frame.f_code.co_qualname}"


def modality_lut(dataset: Any) -> ModalityLut | None:
    """The Modality LUT of a data set, where it has one."""
    if not dataset.get("ModalityLUTSequence"):
        return None
    item = dataset.ModalityLUTSequence[0]
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] is not False else ">"
        entries = np.frombuffer(
            data, "u1" if bits <= 8 and len(data) <= (count or 65536) + 1 else order + "u2"
        )
    else:
        entries = np.atleast_1d(np.asarray(data))
    entries = entries[: count or 65536].astype(np.uint8 if bits <= 8 else np.uint16)
    if not len(entries):
        raise InvalidScan("the Modality LUT is empty")
    return ModalityLut(first, entries)


def numbers(value: Any, count: int) -> Vector | None:
    """`count` finite floats, or None where the attribute is absent. Raises InvalidScan for anything else."""
    if value is None or value == "":
        return None
    found = tuple(float(each) for each in (value if hasattr(value, "__len__") else [value]))
    if len(found) != count or not all(math.isfinite(each) for each in found):
        raise InvalidScan(f"geometry attribute has the value {found}; {count} finite numbers are needed")
    return found


class _Bounded:
    """A file that refuses to hand out a header of unreasonable size, and notices when it ends early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, HEADER_BYTES
        self.short = False

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > ELEMENT_BYTES or size > self._left:
            raise ScanTooLarge("DICOM header", max(size, HEADER_BYTES), HEADER_BYTES)
        data = self._file.read(size)
        self._left -= len(data)
        self.short |= 0 < len(data) < size
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _transfer_syntax(file: BinaryIO) -> tuple[str, int]:
    """The transfer syntax in the file meta information, and where the data set after it starts."""
    from pydicom.filereader import _read_file_meta_info as read_meta  # noqa: PLC0415 - slow to import
    from pydicom.filereader import read_preamble  # noqa: PLC0415

    bounded = cast(BinaryIO, _Bounded(file))
    read_preamble(bounded, force=False)
    return str(read_meta(bounded).get("TransferSyntaxUID", "")), file.tell()


def _inflate(file: BinaryIO, out: BinaryIO, limits: Limits) -> None:
    """Rewrite a deflated file (PS3.5 A.5) as explicit little-endian, bounded by the limit of one entry."""
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - slow to import
    from pydicom.filebase import DicomBytesIO  # noqa: PLC0415
    from pydicom.filewriter import write_file_meta_info  # noqa: PLC0415
    from pydicom.uid import UID  # noqa: PLC0415

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    head = DicomBytesIO()
    write_file_meta_info(head, meta, enforce_standard=False)
    out.write(b"\0" * PREAMBLE_BYTES + MARKER + head.getvalue())
    unpacker, written = zlib.decompressobj(-zlib.MAX_WBITS), 0
    packed = file.read(1 << 20)
    while packed and not unpacker.eof:
        piece = unpacker.decompress(packed, 1 << 20)
        written += out.write(piece)
        if written > limits.member_bytes:
            raise ScanTooLarge("inflated DICOM file", written, limits.member_bytes)
        packed = unpacker.unconsumed_tail or file.read(1 << 20)
    if not unpacker.eof:
        raise InvalidScan("the deflated data set ends early; send the whole file")


@dataclass(frozen=True)
class _PixelElement:
    keyword: str
    vr: str
    offset: int
    length: int | None
    available: int


def _pixel_element(file: _Bounded, dataset: Any, syntax: str) -> _PixelElement | None:
    """The header of the pixel element at which pydicom stopped; None at the end of the file."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = struct.unpack(order + "HH", head[:4])
    keyword = PIXEL_KEYWORDS.get(group << 16 | element)
    if keyword is None:
        return None
    if implicit:
        vr, length = "OW", struct.unpack(order + "L", head[4:])[0]
    else:
        vr, length = head[4:6].decode("ascii"), struct.unpack(order + "L", file.read(4))[0]
    offset = file.tell()
    available = file.seek(0, io.SEEK_END) - offset
    return _PixelElement(keyword, vr, offset, None if length == UNDEFINED_LENGTH else length, available)


def _layout(dataset: Any, syntax: str, member: Member, found: _PixelElement, limits: Limits) -> PixelLayout:
    floating = found.keyword != "PixelData"
    allocated = int(dataset.BitsAllocated)
    frames = dataset.get("NumberOfFrames")
    layout = PixelLayout(
        syntax=syntax,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2"),
        planar=int(dataset.get("PlanarConfiguration") or 0),
        allocated=allocated,
        stored=allocated if floating else int(dataset.get("BitsStored") or allocated),
        signed=not floating and bool(dataset.get("PixelRepresentation") or 0),
        frames=1 if frames in (None, "") else int(frames),
        keyword=found.keyword,
        vr=found.vr,
        offset=found.offset,
        length=found.length,
    )
    _check_layout(layout, member, limits)
    _check_length(layout, member, found)
    return layout


def _check_layout(layout: PixelLayout, member: Member, limits: Limits) -> None:
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - slow to import

    try:
        get_decoder(layout.syntax)
    except NotImplementedError:
        raise UnsupportedScan(
            f"transfer syntax {_known(layout.syntax)} is not handled ({member.told})"
        ) from None
    if min(layout.rows, layout.columns, layout.frames) <= 0:
        raise InvalidScan(
            f"{member.told} has no pixels: {layout.rows} rows, {layout.columns} columns, "
            f"{layout.frames} frames"
        )
    if layout.samples not in (1, 3):
        raise UnsupportedScan(f"{member.told} has {layout.samples} samples per pixel; 1 and 3 are handled")
    allowed = (32, 64) if layout.keyword != "PixelData" else (1, 8, 16, 32)
    if layout.allocated not in allowed or not 0 < layout.stored <= layout.allocated:
        raise UnsupportedScan(
            f"{member.told} has {layout.allocated} bits allocated and {layout.stored} stored; not handled"
        )
    plane = layout.rows * layout.columns * layout.samples * layout.dtype.itemsize
    if plane > limits.plane_bytes:
        raise ScanTooLarge(f"declared size of one plane ({member.told})", plane, limits.plane_bytes)
    if plane * layout.frames > limits.decoded_bytes:
        raise ScanTooLarge(f"declared size of {member.told}", plane * layout.frames, limits.decoded_bytes)
    if layout.frames > limits.members:
        raise InvalidScan(f"{member.told} has {layout.frames} frames; at most {limits.members} are read")


def _known(syntax: str) -> str:
    """A transfer syntax as it may be told: a number of DICOM's own, not whatever stands in its place."""
    if not syntax:
        return "missing"
    return syntax if re.fullmatch(r"1\.2\.840\.10008(\.\d{1,4}){1,8}", syntax) else "of a private kind"


def _check_length(layout: PixelLayout, member: Member, found: _PixelElement) -> None:
    """Refuse pixel data shorter than the header says; each compressed frame needs an item of its own."""
    if layout.length is None:
        if layout.frames * ITEM_BYTES > found.available:
            raise InvalidScan(
                f"{member.told}: {layout.frames} frames are declared, more than {found.available} bytes "
                "can hold; send the whole file"
            )
        return
    held = min(layout.length, found.available)
    if held < layout.native_bytes:
        raise InvalidScan(
            f"{member.told}: pixel data are shorter than the header says: "
            f"expected {layout.native_bytes} bytes, found {held}; send the whole file"
        )
