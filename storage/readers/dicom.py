"""DICOM: one series as a file, a folder or a zip archive of PS3.10 files.

Files are known by their content; one without the `DICM` marker (PS3.10 7.1) is not taken for DICOM, whatever
its name. Slices are sorted by position along the slice normal, never by name or number; without geometry by
InstanceNumber, and then nothing is in mm. Values are real values after Modality LUT or slope and intercept;
MONOCHROME1 is not inverted, palette indices stay indices, colour becomes three channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.dicom_uids import NewUid, SentInstances, replaced
from storage.errors import InvalidScan, UnsupportedScan
from storage.readers.archives import Member, Tree, is_zip, open_tree
from storage.readers.base import Frames, Limits, ScanHeader, Slab, Voxels
from storage.readers.dicom_geometry import Stack, arrange
from storage.readers.dicom_instance import PREAMBLE_BYTES, Plane, is_dicom
from storage.readers.dicom_pixels import PixelReader
from storage.readers.dicom_planes import read_planes
from storage.readers.rescale import real_dtype
from storage.readers.scan import OpenScan, check_size, stack

LISTED = 5
COLOUR = 3


class DicomReader:
    """DICOM files, folders and zip archives. `new_uid` replaces UIDs; without it none is kept."""

    name = "dicom"
    accepts = "DICOM with the DICM marker of Part 10 (a file, a folder, or a zip of a series)"

    def __init__(self, new_uid: NewUid | None = None) -> None:
        self._new_uid = new_uid

    def recognises(self, path: Path) -> bool:
        """Whether it is a PS3.10 file, or a folder or archive, which may hold such files."""
        if path.is_dir() or is_zip(path):
            return True
        with path.open("rb") as file:
            return is_dicom(file.read(PREAMBLE_BYTES + 4))

    def open(self, path: Path, limits: Limits) -> DicomScan:
        """Read all headers and arrange the slices. See `Reader.open`."""
        with ExitStack() as resources:
            tree = resources.enter_context(open_tree(path, limits))
            planes, warnings = _read_series(tree, limits)
            arranged = arrange(planes)
            header = _header(self.name, arranged)
            if self._new_uid is not None:
                header = _with_uids(header, arranged, self._new_uid)
            frames = header.frames.count if header.frames else 1
            check_size(header.grid.shape, frames, header.dtype.itemsize, limits)
            notes = [*warnings, *arranged.warnings, *_notes(planes)]
            pixels = PixelReader(tree, limits)
            resources.callback(pixels.close)
            return DicomScan(header, notes, resources.pop_all(), arranged, pixels)


class DicomScan(OpenScan):
    """An opened series: planes are decoded one at a time, in the order of delivery."""

    def __init__(
        self,
        header: ScanHeader,
        warnings: list[str],
        resources: ExitStack,
        arranged: Stack,
        pixels: PixelReader,
    ) -> None:
        super().__init__(header, warnings, resources)
        self._arranged, self._pixels = arranged, pixels

    def slabs(self, depth: int) -> Iterator[Slab]:
        """See `Scan.slabs`."""
        frames = self.header.frames.count if self.header.frames else 1
        yield from stack(self._planes(), frames, self.header.grid.shape[0], depth)

    def _planes(self) -> Iterator[Voxels]:
        colours: Sequence[int | None] = [None]
        if self._arranged.planes[0][0].instance.pixels.samples == COLOUR:
            colours = range(COLOUR)
        for colour in colours:
            for frame in self._arranged.planes:
                for plane in frame:
                    stored = self._pixels.stored(plane)
                    yield self._real(plane, stored if colour is None else stored[..., colour])

    def _real(self, plane: Plane, stored: Voxels) -> Voxels:
        if plane.instance.lut is not None:
            return plane.instance.lut.apply(stored)
        return plane.rescale.apply(stored, self.header.dtype)


def _read_series(tree: Tree, limits: Limits) -> tuple[list[Plane], list[str]]:
    """The planes of the one series in an upload, and what was left out. Raises InvalidScan for several."""
    warnings, planes, other, documents = [], [], [], []
    for member in tree.members:
        if not is_dicom(tree.read(member, PREAMBLE_BYTES + 4)):
            other.append(member.told)
            continue
        found = read_planes(tree, member, limits)
        planes += found
        if len(planes) > limits.members:
            raise InvalidScan(f"the upload has more than {limits.members} slices; at most that many are read")
        if not found:
            documents.append(member.told)
    if not planes:
        raise _nothing_found(tree, documents)
    if other:
        warnings.append(f"{len(other)} files that are not DICOM were ignored: {_listed(other)}")
    if documents:
        warnings.append(f"{len(documents)} DICOM files without pixels were ignored: {_listed(documents)}")
    _check_one_series(planes)
    kept, duplicates = _without_duplicates(tree, planes)
    if duplicates:
        warnings.append(f"{duplicates} duplicates of slices were ignored")
    return kept, warnings


def _nothing_found(tree: Tree, documents: list[str]) -> Exception:
    if documents:
        return UnsupportedScan(f"a DICOM document without pixel data ({_listed(documents)}); send images")
    if not tree.members:
        return InvalidScan("there are no slices: the upload holds no files")
    return InvalidScan(
        f"no DICOM in the upload's {len(tree.members)} files (nested archives are not opened); "
        "send NIfTI and NRRD files by themselves"
    )


def _check_one_series(planes: list[Plane]) -> None:
    series: dict[str, list[Plane]] = {}
    for plane in planes:
        series.setdefault(plane.instance.series, []).append(plane)
    if len(series) > 1:
        lines = [
            f"{group[0].instance.modality}, {len(group)} slices of {group[0].size[0]} x {group[0].size[1]}, "
            f"such as {group[0].instance.member.told}"
            for group in series.values()
        ]
        raise InvalidScan(f"{len(series)} series in one upload, send one of them: {'; '.join(lines)}")


def _without_duplicates(tree: Tree, planes: list[Plane]) -> tuple[list[Plane], int]:
    """The planes without second copies of a file, and how many files those were.

    Raises InvalidScan when two different files carry the same SOP Instance UID.
    """
    first: dict[str, Member] = {}
    copies: set[str] = set()
    for instance in dict.fromkeys(plane.instance for plane in planes):
        kept = first.setdefault(instance.uid, instance.member) if instance.uid else instance.member
        if kept == instance.member:
            continue
        if _digest(tree, kept) != _digest(tree, instance.member):
            raise InvalidScan(f"{kept.told} and {instance.member.told} have one SOP Instance UID but differ")
        copies.add(instance.member.name)
    return [plane for plane in planes if plane.instance.member.name not in copies], len(copies)


def _digest(tree: Tree, member: Member) -> bytes:
    with tree.stream(member) as file:
        digest = hashlib.blake2b()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _header(name: str, arranged: Stack) -> ScanHeader:
    first = arranged.planes[0][0].instance
    frames = arranged.frames
    if first.pixels.samples == COLOUR:
        if frames is not None:
            raise InvalidScan(f"more than 4 dimensions: {frames.count} frames of colour pictures")
        frames = Frames("c", COLOUR)
    metadata = {**first.metadata, **arranged.metadata}
    if any(_is_marked(plane, "BurnedInAnnotation") for frame in arranged.planes for plane in frame):
        metadata["BurnedInAnnotation"] = "YES"
    return ScanHeader(name, arranged.grid, _dtype(arranged), frames, metadata)


def _with_uids(header: ScanHeader, arranged: Stack, new_uid: NewUid) -> ScanHeader:
    """The header with replaced UIDs: of study, series, frame of reference, and each plane's instance."""
    first = arranged.planes[0][0].instance
    sent = {
        "StudyInstanceUID": first.study,
        "SeriesInstanceUID": first.series,
        "FrameOfReferenceUID": first.frame_of_reference,
    }
    metadata = {**header.metadata, **{name: new_uid(uid) for name, uid in sent.items() if uid}}
    uids = [[plane.instance.uid for plane in frame] for frame in arranged.planes]
    return replace(header, metadata=metadata, instances=SentInstances(replaced(new_uid, uids)))


def _dtype(arranged: Stack) -> np.dtype[Any]:
    """The one type of all planes. Raises InvalidScan where they are coded too differently to share one."""
    planes = [plane for frame in arranged.planes for plane in frame]
    tables = {None if plane.instance.lut is None else plane.instance.lut.entries.dtype for plane in planes}
    if len(tables) > 1:
        raise InvalidScan("some slices have a Modality LUT and others none, or of another depth")
    table = tables.pop()
    if table is not None:
        return table
    layouts = {(plane.instance.pixels.dtype, plane.instance.pixels.samples) for plane in planes}
    if len(layouts) > 1:
        raise InvalidScan(
            f"slices hold different kinds of pixels: {sorted(str(dtype) for dtype, _ in layouts)}"
        )
    stored = layouts.pop()[0]
    bits = max(plane.instance.pixels.stored for plane in planes)
    return real_dtype(stored, (plane.rescale for plane in planes), bits)


def _notes(planes: list[Plane]) -> list[str]:
    notes = []
    photometric = {plane.instance.pixels.photometric for plane in planes}
    if "MONOCHROME1" in photometric:
        notes.append("MONOCHROME1: low values are meant to be shown bright; values are as stored")
    if "PALETTE COLOR" in photometric:
        notes.append("palette colour: values are indices into a palette, not intensities")
    if any(_is_marked(plane, "BurnedInAnnotation") for plane in planes):
        notes.append(
            "the header says that text is burned into the picture (BurnedInAnnotation): it may name the "
            "patient, and is kept as it is"
        )
    if any(plane.tile is not None for plane in planes):
        notes.append("Siemens mosaic: each picture was cut into its slices")
    extra = [plane for plane in planes if _padding(plane) > 1 and plane.frame == 0 and not plane.tile]
    if extra:
        notes.append(
            f"{len(extra)} files hold more bytes than their pixels need, such as "
            f"{extra[0].instance.member.told}; those bytes were ignored"
        )
    return notes


def _is_marked(plane: Plane, keyword: str) -> bool:
    return bool(plane.instance.metadata.get(keyword) == "YES")


def _padding(plane: Plane) -> int:
    pixels = plane.instance.pixels
    return 0 if pixels.length is None else pixels.length - pixels.native_bytes


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"
