"""A volume as NIfTI-1, or NIfTI-2 where a side is above 32,767 (nifti1.h, nifti2.h), gzipped.

Voxels are written as they are stored: array axes (z, y, x) are (k, j, i), time is the fourth axis, channels
are the fifth, and the dtype is kept, of which NIfTI has each that a volume can have. NIfTI-1 holds affines
and spacings as float32.

    sform     the affine
    qform     the affine too, where a rotation and voxel sizes can say it: not one that shears
    neither   where the affine is unknown: then readers take `diag(pixdim)` (nifti1.h, "method 1")
    pixdim    spacing in mm, the time step in s; 0 and without a unit where unknown
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from storage.exports.slabs import slabs
from storage.jobs import Progress
from storage.records import StoredVolume
from storage.volume import Volume

MOST_SIDE = 2**15 - 1
"""Of NIfTI-1."""
ALIGNED = 2
"""Code of coordinates whose origin is not told, nibabel's for an affine without more."""
MILLIMETRES, SECONDS = 2, 8
GZIP_LEVEL = 1
GZIP_WINDOW = 31
"""zlib's word for a gzip stream with the largest window."""
NEAR = 1e-4
"""A qform that differs by no more, in mm, is the affine."""


def nifti_pieces(volume: Volume, depth: int, report: Callable[[Progress], None]) -> Iterator[bytes]:
    """The bytes of a `.nii.gz`, `depth` planes at a time. Raises CorruptVolume, and what `report` raises."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    yield packer.compress(nifti_header(volume.stored))
    shape = volume.stored.array_shape
    done, total = 0, int(np.prod(shape[:-2]))
    for slab in slabs(volume, depth):
        report(Progress("writing", done, total, "planes"))
        little = slab.voxels.dtype.newbyteorder("<")
        for plane in slab.voxels:
            yield packer.compress(np.ascontiguousarray(plane, little).data)
        done += len(slab.voxels)
    yield packer.flush()


def nifti_version(stored: StoredVolume) -> int:
    """1, or 2 where a side is too long for it."""
    return 1 if max(stored.array_shape) <= MOST_SIDE else 2


def nifti_header(stored: StoredVolume) -> bytes:
    """All that stands before the voxels."""
    from nibabel.nifti1 import Nifti1Header  # noqa: PLC0415 - nibabel is slow to import
    from nibabel.nifti2 import Nifti2Header  # noqa: PLC0415

    kind: Any = Nifti1Header if nifti_version(stored) == 1 else Nifti2Header
    header = kind(endianness="<")
    header.set_data_dtype(np.dtype(stored.dtype))
    header.set_data_shape(_sides(stored))
    header.set_slope_inter(1.0, 0.0)
    _place(header, stored)
    header["vox_offset"] = len(header.binaryblock) + 4
    if stored.derived is not None:
        header["descrip"] = f"Tomotrain: {stored.derived.kind}".encode()[:79]
    no_extensions = bytes(4)
    return bytes(header.binaryblock) + no_extensions


def _sides(stored: StoredVolume) -> tuple[int, ...]:
    """(x, y, z), with t, or 1 and c."""
    sides = stored.array_shape[::-1]
    return (*sides[:3], 1, *sides[3:]) if stored.axes[0] == "c" else sides


def _place(header: Any, stored: StoredVolume) -> None:
    """Spacing, time step, units and affine."""
    grid, step = stored.grid, stored.frame_step_s
    header["pixdim"][1:4] = grid.spacing[::-1] if grid.spacing else 0.0
    header["pixdim"][4] = step or 0.0
    header["xyzt_units"] = (MILLIMETRES if grid.spacing else 0) | (SECONDS if step else 0)
    if grid.affine is None:
        return
    header.set_qform(grid.matrix, ALIGNED, strip_shears=True)
    if not np.allclose(header.get_qform(), grid.matrix, rtol=1e-5, atol=NEAR):
        header["qform_code"] = 0
    header.set_sform(grid.matrix, ALIGNED)
