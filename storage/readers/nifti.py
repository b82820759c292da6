"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped (nifti1.h, nifti2.h).

Voxels are delivered in file order: array axes (k, j, i), never flipped or resampled. The fourth axis is time,
unless its unit is spectral (Hz, ppm, rad/s), and the fifth (vector) axis is channels. Lengths are converted
from metres and micrometres to millimetres; where the unit is unknown they are taken for millimetres, as
nibabel does. Header extensions and free text are skipped. Where neither qform nor sform is set, the affine is
`diag(pixdim)` (nifti1.h, "method 1").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from storage.errors import InvalidScan, UnsupportedScan
from storage.grid import VoxelGrid
from storage.readers.base import Frames, Limits, ScanHeader, Slab
from storage.readers.rescale import Rescale, real_dtype
from storage.readers.scan import FileScan, check_size, slab_ranges
from storage.readers.streams import (
    DEFLATE_MAX_RATIO,
    GZIP_MAGIC,
    check_tail,
    open_packed,
    read_exactly,
    skip,
    unpacked_head,
)

HEADER_BYTES = {1: 348, 2: 540}
MAGIC = {1: (344, b"n+1\0"), 2: (4, b"n+2\0\r\n\x1a\n")}
DETACHED = {1: b"ni1\0", 2: b"ni2\0\r\n\x1a\n"}
DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
UNSUPPORTED = {
    1: "1-bit", 32: "complex64", 128: "RGB24 colour", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA32 colour",
}  # fmt: skip
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
SPECTRAL = {32, 40, 48}


class NiftiReader:
    """NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`."""

    name = "nifti"
    accepts = "NIfTI-1 and -2 (.nii, .nii.gz)"

    def recognises(self, path: Path) -> bool:
        """Whether the first 348 bytes, unpacked if need be, are the start of a NIfTI header."""
        return path.is_file() and _dialect(unpacked_head(path, 348)) is not None

    def open(self, path: Path, limits: Limits) -> NiftiScan:
        """Read and check the header. See `Reader.open`."""
        layout = _read_layout(path)
        check_size(layout.shape, layout.frames, max(layout.stored.itemsize, layout.dtype.itemsize), limits)
        _check_file_size(path, layout)
        warnings: list[str] = []
        grid = _grid(layout, warnings)
        if layout.ignored_slope:
            warnings.append(
                f"scl_slope is {layout.ignored_slope}: ignored, as the standard says of such slopes"
            )
        frames = None
        if layout.frames > 1:
            frames = Frames(layout.axis, layout.frames, layout.step_s)
        header = ScanHeader(self.name, grid, layout.dtype, frames, {"nifti_version": layout.version})
        return NiftiScan(path, layout, header, warnings)


@dataclass(frozen=True)
class Layout:
    """What a header says about the bytes after it. `shape` is (z, y, x); `fields` is nibabel's header."""

    version: int
    packed: bool
    shape: tuple[int, int, int]
    frames: int
    axis: Any
    step_s: float | None
    offset: int
    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    rescale: Rescale
    ignored_slope: str | None
    fields: Any

    @property
    def voxel_bytes(self) -> int:
        """How many bytes of voxels the header declares."""
        return math.prod(self.shape) * self.frames * self.stored.itemsize


class NiftiScan(FileScan):
    """An opened NIfTI file: one pass over its bytes."""

    def __init__(self, path: Path, layout: Layout, header: ScanHeader, warnings: list[str]) -> None:
        super().__init__(path, header, warnings)
        self._layout = layout

    def slabs(self, depth: int) -> Iterator[Slab]:
        """See `Scan.slabs`. A gzip stream is unpacked once, no further than a little past the voxels."""
        layout, done = self._layout, 0
        stream = self._voxel_stream()
        for frame, start, stop in slab_ranges(layout.frames, layout.shape[0], depth):
            stored = np.empty((stop - start, *layout.shape[1:]), layout.stored)
            read_exactly(stream, stored, done, layout.voxel_bytes)
            done += stored.nbytes
            yield Slab(frame, start, layout.rescale.apply(stored, layout.dtype))
        extra = check_tail(stream)
        if extra:
            self._warnings.append(extra)

    def _voxel_stream(self) -> BinaryIO:
        if not self._layout.packed:
            self._file.seek(self._layout.offset)
            return self._file
        self._file.seek(0)
        stream = open_packed(self._file, "gzip")
        skip(stream, self._layout.offset)
        return stream


def _dialect(head: bytes) -> tuple[int, str] | None:
    """(version, byte order) of a single-file header, by its size field and magic; None for anything else.

    Raises UnsupportedScan for the header half of a two-file pair and for ANALYZE 7.5.
    """
    if len(head) < 12:
        return None
    for version, size in HEADER_BYTES.items():
        for order in "<>":
            if struct.unpack(order + "i", head[:4])[0] != size:
                continue
            start, magic = MAGIC[version]
            found = head[start : start + len(magic)]
            if found == magic:
                return version, order
            if found == DETACHED[version]:
                raise UnsupportedScan(
                    "a NIfTI header without its voxels (.hdr/.img pair); send a single .nii file"
                )
            if version == 1 and len(head) >= 348:
                raise UnsupportedScan(
                    "a header without NIfTI's magic (damaged, or ANALYZE 7.5); convert the scan to NIfTI"
                )
    return None


def _read_layout(path: Path) -> Layout:
    head = unpacked_head(path, HEADER_BYTES[2])
    dialect = _dialect(head)
    if dialect is None:
        raise UnsupportedScan("the content is not NIfTI")
    version, order = dialect
    fields = _fields(head, version, order)
    shape, frames, axis = _dimensions([int(size) for size in fields["dim"]], int(fields["xyzt_units"]))
    stored = _stored_dtype(int(fields["datatype"]), order)
    rescale, ignored = _rescale(float(fields["scl_slope"]), float(fields["scl_inter"]))
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return Layout(
        version=version,
        packed=packed,
        shape=shape,
        frames=frames,
        axis=axis,
        step_s=_step(float(fields["pixdim"][4]), int(fields["xyzt_units"])) if axis == "t" else None,
        offset=_voxel_offset(fields["vox_offset"], HEADER_BYTES[version]),
        stored=stored,
        dtype=real_dtype(stored, [rescale]),
        rescale=rescale,
        ignored_slope=ignored,
        fields=fields,
    )


def _fields(head: bytes, version: int, order: str) -> Any:
    """nibabel's header of the bytes, unchecked: every field that matters is checked here."""
    from nibabel.nifti1 import Nifti1Header  # noqa: PLC0415 - nibabel is slow to import
    from nibabel.nifti2 import Nifti2Header  # noqa: PLC0415

    size = HEADER_BYTES[version]
    if len(head) < size:
        raise InvalidScan(f"file ends early: a NIfTI-{version} header has {size} bytes, found {len(head)}")
    kind: Any = Nifti1Header if version == 1 else Nifti2Header
    return kind(head[:size], endianness=order, check=False)


def _dimensions(dim: list[int], units: int) -> tuple[tuple[int, int, int], int, str]:
    """((z, y, x), frames, axis) of `dim`; axes of length 1 at the end are dropped."""
    count = dim[0]
    if not 1 <= count <= 7:
        raise InvalidScan(f"bad header: dim[0] is {count}, allowed are 1 to 7")
    sizes = dim[1 : count + 1]
    if min(sizes) < 0:
        raise InvalidScan(f"bad header: negative dimension {min(sizes)} in {sizes}")
    if min(sizes) == 0:
        raise InvalidScan(f"no voxels: the header declares the dimensions {sizes}")
    if count < 3:
        raise InvalidScan(f"a volume is needed, this file has {count} dimensions: {sizes}")
    i, j, k, fourth, fifth, *rest = [*sizes, 1, 1, 1, 1][:7]
    if (fourth > 1 and fifth > 1) or max(rest) > 1:
        raise InvalidScan(f"more than 4 dimensions: {sizes}; send one volume or one series at a time")
    if fifth > 1 or (units & 0x38) in SPECTRAL:
        return (k, j, i), fourth * fifth, "c"
    return (k, j, i), fourth, "t"


def _stored_dtype(code: int, order: str) -> np.dtype[Any]:
    if code in DTYPES:
        return np.dtype(order + DTYPES[code])
    kind = UNSUPPORTED.get(code, "unknown")
    raise UnsupportedScan(
        f"unsupported NIfTI datatype code {code} ({kind}); convert to an integer type, float32 or float64"
    )


def _rescale(slope: float, intercept: float) -> tuple[Rescale, str | None]:
    """The map, and a slope that was set but has to be ignored. NaN and 0 mean: not set (nifti1.h)."""
    if math.isnan(slope) or slope == 0:
        return Rescale(), None
    if math.isinf(slope):
        return Rescale(), str(slope)
    if not math.isfinite(intercept):
        raise InvalidScan(f"bad header: scl_inter is {intercept} beside a valid scl_slope of {slope}")
    return Rescale(slope, intercept), None


def _step(pixdim: float, units: int) -> float | None:
    seconds = SECONDS.get(units & 0x38)
    return pixdim * seconds if seconds is not None and math.isfinite(pixdim) and pixdim > 0 else None


def _voxel_offset(field: Any, header_bytes: int) -> int:
    offset = float(field)
    if not math.isfinite(offset) or int(offset) < header_bytes + 4:
        raise InvalidScan(
            f"bad header: vox_offset is {offset:g}, the header itself has {header_bytes + 4} bytes"
        )
    return int(field)


def _check_file_size(path: Path, layout: Layout) -> None:
    """Refuse from the sizes alone what cannot be whole. A gzip stream is not unpacked for this."""
    size = path.stat().st_size
    most = size * DEFLATE_MAX_RATIO if layout.packed else size
    if layout.offset >= most:
        raise InvalidScan(f"bad header: voxels start at byte {layout.offset}, after the end of the file")
    if layout.voxel_bytes > most - layout.offset:
        found = "at most " if layout.packed else ""
        raise InvalidScan(
            f"file ends early: expected {layout.voxel_bytes} voxel bytes, "
            f"found {found}{most - layout.offset}; send the whole file"
        )


def _grid(layout: Layout, warnings: list[str]) -> VoxelGrid:
    """The grid by sform, else qform, else voxel sizes alone; appends what a user should know."""
    sizes = [float(size) for size in layout.fields["pixdim"][1:4]]
    if not all(math.isfinite(size) for size in sizes):
        raise InvalidScan(f"bad voxel size: pixdim is {sizes}")
    scale = np.diag([MILLIMETRES.get(int(layout.fields["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    if int(layout.fields["sform_code"]) > 0:
        try:
            return VoxelGrid.from_affine(layout.shape, scale @ layout.fields.get_sform())
        except InvalidScan:
            if int(layout.fields["qform_code"]) <= 0:
                raise
            warnings.append("the sform is singular or not finite: the qform was used in its place")
    if int(layout.fields["qform_code"]) > 0:
        return VoxelGrid.from_affine(layout.shape, scale @ _qform(layout.fields, sizes))
    if min(sizes) < 0:
        raise InvalidScan(f"bad voxel size: pixdim is {sizes}")
    if min(sizes) == 0:
        warnings.append(
            "voxel size unknown: pixdim is 0 and neither qform nor sform is set; nothing is in mm"
        )
        return VoxelGrid(layout.shape)
    return VoxelGrid.from_affine(layout.shape, scale @ np.diag([*sizes, 1.0]))


def _qform(fields: Any, sizes: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The affine of the quaternion (nifti1.h, "method 2"), by nibabel; qfac 0 means 1."""
    from nibabel.spatialimages import HeaderDataError  # noqa: PLC0415 - nibabel is slow to import

    if min(sizes) <= 0:
        raise InvalidScan(f"bad voxel size: pixdim is {sizes}, and the qform needs it")
    if float(fields["pixdim"][0]) not in (-1.0, 1.0):
        fields["pixdim"][0] = 1.0
    try:
        return np.asarray(fields.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InvalidScan(f"bad header: the qform is not a rotation ({error})") from error
