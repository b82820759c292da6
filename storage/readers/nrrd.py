"""NRRD with its voxels in the same file, raw, gzip or bzip2 (teem, "Definition of NRRD File Format").

The header is cut out first, bounded in size, and parsed by pynrrd; a `data file:` field is refused and never
followed. Coordinates in left-posterior-superior or left-anterior-superior space become RAS+; in a space
without anatomical meaning only the voxel size is known.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidScan, UnsupportedScan
from storage.grid import VoxelGrid
from storage.readers.base import Frames, Limits, ScanHeader, Slab, Voxels
from storage.readers.scan import FileScan, check_size, slab_ranges
from storage.readers.streams import check_tail, open_packed, read_exactly

MAGIC = b"NRRD000"
HEADER_BYTES = 1 << 20
DTYPES = {
    name: dtype
    for dtype, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
PACKINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "um": 1e-3, "µm": 1e-3, "cm": 10.0, "m": 1e3}
TIME_KINDS = {"time"}
SPACE_KINDS = {"space", "domain"}
FIELDS = frozenset(
    {"type", "dimension", "space", "space dimension", "sizes", "space directions", "space origin", "kinds",
     "endian", "encoding", "spacings", "thicknesses", "axis mins", "axis maxs", "centers", "units",
     "space units", "measurement frame", "block size", "data file", "line skip", "byte skip", "content"}
)  # fmt: skip
WORDS = frozenset(
    {"", "ascii", "text", "txt", "hex", "zrl", "block", "float16", "bfloat16", "list", "point", "vector",
     "covariant-vector", "normal", "stub", "scalar", "complex", "2-vector", "3-color", "rgb-color",
     "hsv-color", "xyz-color", "4-color", "rgba-color", "3-vector", "3-gradient", "3-normal", "4-vector",
     "quaternion", "2d-symmetric-matrix", "2d-masked-symmetric-matrix", "2d-matrix", "2d-masked-matrix",
     "3d-symmetric-matrix", "3d-masked-symmetric-matrix", "3d-matrix", "3d-masked-matrix", "none", "???",
     *TIME_KINDS, *SPACE_KINDS}
)  # fmt: skip
"""Of NRRD's own: others may be anybody's, and are not repeated."""


class NrrdReader:
    """NRRD, attached data only."""

    name = "nrrd"
    accepts = "NRRD with its data attached"

    def recognises(self, path: Path) -> bool:
        """Whether the file starts with NRRD's magic line."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    def open(self, path: Path, limits: Limits) -> NrrdScan:
        """Read and check the header. See `Reader.open`."""
        layout = _read_layout(path)
        check_size(layout.shape, layout.frames, layout.stored.itemsize, limits)
        if layout.frame_axis == 0:
            check_size(layout.shape, layout.frames, layout.stored.itemsize * layout.frames, limits)
        notes: list[str] = []
        frames = Frames(layout.kind, layout.frames) if layout.frames > 1 else None
        grid = _grid(layout, notes)
        header = ScanHeader(self.name, grid, layout.stored.newbyteorder("="), frames)
        return NrrdScan(path, layout, header, notes)


@dataclass(frozen=True)
class Layout:
    """What a header says. `axes` are the places of x, y, z among NRRD's axes, fastest first."""

    fields: dict[str, Any]
    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    frames: int
    frame_axis: int | None
    kind: Any
    stored: np.dtype[Any]
    packing: str
    offset: int

    @property
    def voxel_bytes(self) -> int:
        """How many bytes of voxels the header declares."""
        return math.prod(self.shape) * self.frames * self.stored.itemsize


class NrrdScan(FileScan):
    """An opened NRRD file. Interleaved channels (fastest axis) take one pass over the bytes each."""

    def __init__(self, path: Path, layout: Layout, header: ScanHeader, notes: list[str]) -> None:
        super().__init__(path, header, notes)
        self._layout = layout

    def slabs(self, depth: int) -> Iterator[Slab]:
        """See `Scan.slabs`."""
        if self._layout.frame_axis == 0:
            for channel in range(self._layout.frames):
                for _, start, voxels in self._pass(1, depth, self._layout.frames):
                    yield Slab(channel, start, np.ascontiguousarray(voxels[..., channel]))
        else:
            for frame, start, voxels in self._pass(self._layout.frames, depth, 1):
                yield Slab(frame, start, voxels[..., 0])

    def _pass(self, frames: int, depth: int, samples: int) -> Iterator[tuple[int, int, Voxels]]:
        """One pass over the voxels: (frame, start, voxels (d, y, x, samples) in native byte order)."""
        layout, done = self._layout, 0
        self._file.seek(layout.offset)
        stream: BinaryIO = open_packed(self._file, layout.packing)
        for frame, start, stop in slab_ranges(frames, layout.shape[0], depth):
            stored = np.empty((stop - start, *layout.shape[1:], samples), layout.stored)
            read_exactly(stream, stored, done, layout.voxel_bytes)
            done += stored.nbytes
            yield frame, start, stored.astype(layout.stored.newbyteorder("="), copy=False)
        extra = check_tail(stream)
        if extra:
            self._warnings.append(extra)


def _read_layout(path: Path) -> Layout:
    fields, offset = _read_fields(path)
    for refused in ("data file", "datafile"):
        if refused in fields:
            raise UnsupportedScan(
                "a detached NRRD header (data file elsewhere); send one .nrrd file with its data"
            )
    for skipped in ("line skip", "lineskip", "byte skip", "byteskip"):
        if int(fields.get(skipped, 0)) != 0:
            raise UnsupportedScan(f"NRRD field {skipped!r} is not handled; save the file again without it")
    encoding = str(fields.get("encoding", "")).lower()
    if encoding not in PACKINGS:
        raise UnsupportedScan(f"NRRD encoding {_known(encoding)} is not handled; use raw, gzip or bzip2")
    sizes = [int(size) for size in np.atleast_1d(fields.get("sizes", []))]
    axes, frame_axis, kind = _axes(sizes, [str(each).lower() for each in fields.get("kinds", [])])
    x, y, z = axes
    return Layout(
        fields=fields,
        shape=(sizes[z], sizes[y], sizes[x]),
        axes=axes,
        frames=1 if frame_axis is None else sizes[frame_axis],
        frame_axis=frame_axis,
        kind=kind,
        stored=_stored_dtype(fields),
        packing=PACKINGS[encoding],
        offset=offset,
    )


def _read_fields(path: Path) -> tuple[dict[str, Any], int]:
    """The header's fields and where the voxels start."""
    import nrrd  # noqa: PLC0415 - only where an NRRD file arrives

    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    ends = [head.find(blank) + len(blank) for blank in (b"\n\n", b"\r\n\r\n") if blank in head]
    if not ends:
        raise InvalidScan(f"bad NRRD header: no empty line ends it within {HEADER_BYTES} bytes")
    end = min(ends)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(nrrd.read_header(io.BytesIO(head[:end]))), end
    except Exception as error:  # its words quote the header, and so does its chain
        raise InvalidScan(f"bad NRRD header ({type(error).__name__}): {_unreadable(head[:end])}") from None


def _unreadable(head: bytes) -> str:
    """Which of the header's fields cannot be read by itself, by name where it is one of NRRD's."""
    fields = [line.partition(b": ")[0].decode("ascii", "replace") for line in head.splitlines()[1:]]
    named = [field for field in fields if field in FIELDS]
    doubled = [field for field in named if named.count(field) > 1]
    missing = [field for field in ("type", "dimension", "sizes", "encoding") if field not in named]
    if doubled:
        return f"the field {doubled[0]!r} stands there twice"
    return (
        f"the field {missing[0]!r} is missing" if missing else "a line is no field, or its value does not fit"
    )


def _known(word: str) -> str:
    """A word of the header that may be told: one of NRRD's own."""
    return repr(word) if word in WORDS else "of another kind"


def _axes(sizes: list[int], kinds: list[str]) -> tuple[tuple[int, int, int], int | None, str]:
    """((x, y, z), the axis of frames or None, `t` or `c`) by the kinds of the axes."""
    if len(sizes) == 3:
        if any(kind not in SPACE_KINDS | {"none", "???"} for kind in kinds):
            raise InvalidScan(
                f"a volume is needed; the axes of this NRRD are {', '.join(map(_known, kinds))}"
            )
        return (0, 1, 2), None, "c"
    if len(sizes) != 4:
        raise InvalidScan(f"3 or 4 dimensions are needed, this NRRD has {len(sizes)}: {sizes}")
    others = [axis for axis, kind in enumerate(kinds) if kind not in SPACE_KINDS]
    frame_axis = others[0] if len(others) == 1 else 3
    if frame_axis not in (0, 3):
        raise UnsupportedScan(
            f"NRRD axes {', '.join(map(_known, kinds))} are not handled; put the frames first or last"
        )
    kind = "t" if kinds[frame_axis : frame_axis + 1] and kinds[frame_axis] in TIME_KINDS else "c"
    return ((1, 2, 3) if frame_axis == 0 else (0, 1, 2)), frame_axis, kind


def _stored_dtype(fields: dict[str, Any]) -> np.dtype[Any]:
    name = str(fields.get("type", "")).lower()
    if name not in DTYPES:
        raise UnsupportedScan(
            f"NRRD type {_known(name)} is not handled; convert to an integer type, float or double"
        )
    order = {"little": "<", "big": ">"}.get(str(fields.get("endian", "")).lower(), "")
    dtype = np.dtype(order + DTYPES[name])
    if dtype.itemsize > 1 and not order:
        raise InvalidScan("bad NRRD header: the field 'endian' is missing")
    return dtype


def _grid(layout: Layout, notes: list[str]) -> VoxelGrid:
    fields = layout.fields
    units = np.atleast_1d(fields.get("space units", ["mm"]))
    scale = MILLIMETRES.get(str(units[0]).strip('" ').lower())
    directions = _directions(fields, layout.axes)
    if directions is None:
        return _grid_of_spacings(layout, notes)
    if scale is None:
        notes.append("voxel size unknown: the header's unit is not a length that is known here")
        return VoxelGrid(layout.shape)
    to_ras = TO_RAS.get(str(fields.get("space", "")).lower())
    affine = np.eye(4)
    affine[:3, :3] = directions.T * scale
    if to_ras is None:
        notes.append("the NRRD's space has no anatomical meaning: voxel sizes are known, directions are not")
        return VoxelGrid(layout.shape, VoxelGrid.from_affine(layout.shape, affine).spacing)
    affine[:3, 3] = _origin(fields) * scale
    return VoxelGrid.from_affine(layout.shape, np.diag([*to_ras, 1.0]) @ affine)


def _directions(fields: dict[str, Any], axes: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """The space directions of (x, y, z), one a row; None where the header has none."""
    if "space directions" not in fields:
        return None
    rows = fields["space directions"]
    try:
        directions = np.array([rows[axis] for axis in axes], np.float64)
    except (IndexError, TypeError, ValueError) as error:
        raise InvalidScan("bad NRRD header: 'space directions' are no three vectors") from error
    if directions.shape != (3, 3):
        raise InvalidScan("bad NRRD header: 'space directions' are no vectors of three numbers")
    return directions


def _origin(fields: dict[str, Any]) -> NDArray[np.float64]:
    origin = np.asarray(fields.get("space origin", np.zeros(3)), np.float64)
    if origin.shape != (3,):
        raise InvalidScan(f"bad NRRD header: the space origin is {origin.tolist()}; 3 numbers are needed")
    return origin


def _grid_of_spacings(layout: Layout, notes: list[str]) -> VoxelGrid:
    spacings = [float(size) for size in np.atleast_1d(layout.fields.get("spacings", []))]
    sizes = [spacings[axis] for axis in layout.axes if axis < len(spacings)]
    if len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        notes.append("voxel size unknown: the NRRD has neither space directions nor spacings")
        return VoxelGrid(layout.shape)
    notes.append(
        "the NRRD has spacings but no directions: voxel sizes are taken for mm, orientation is unknown"
    )
    return VoxelGrid(layout.shape, (sizes[2], sizes[1], sizes[0]))
