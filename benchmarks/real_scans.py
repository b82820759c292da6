"""Real scans that rates are measured on, whole or their middles: files under TOMOTRAIN_DATA.

None of them was used for `storage/putt/tables.py`, which saw the hippocampus crops, the IXI heads, `scct` and
`FA`. CT: a chest of 8 mm slices, a head with a tilted gantry, a head stored in 8 bits, an abdomen of 3 mm.
MR: a fruit under a head's protocol in 16 bits, a FLAIR head in 8 bits, an enhanced multi-frame T1 in 12. Over
time: echo-planar series of three scanners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fields import DATA
from storage.readers import open_scan

Array = NDArray[Any]


@dataclass(frozen=True)
class RealScan:
    """A file under `dev`, and the sides (z, y, x) of its middle, of every frame."""

    path: str
    modality: str
    crop: tuple[int, int, int]


SCANS = {
    "chest_ct": RealScan("dicom/chest_ct_A0002_30x8mm.zip", "CT", (30, 144, 144)),
    "head_ct_tilted": RealScan("dicom/head_ct_gantry_tilt_GE.zip", "CT", (28, 144, 144)),
    "head_ct_8bit": RealScan("nifti/CT_pitch.nii.gz", "CT", (58, 104, 104)),
    "abdomen_ct": RealScan("zarr/example_ct_v3.zarr", "CT", (64, 96, 96)),
    "mr_16bit": RealScan("dicom/head_mr_T1_196.zip", "MR", (64, 96, 96)),
    "flair_8bit": RealScan("nifti/stroke_FLAIR.nii.gz", "MR", (64, 96, 96)),
    "t1_12bit": RealScan("dicom/head_mr_T1_enhanced_96.zip", "MR", (64, 96, 96)),
    "fmri_spine": RealScan("nifti/sct_fmri_4d.nii.gz", "MR over time", (6, 68, 68)),
    "fmri_mosaic": RealScan("dicom/fmri_siemens_mosaic.zip", "MR over time", (36, 64, 64)),
    "fmri_ge": RealScan("dicom/fmri_ge_4d_150.zip", "MR over time", (15, 64, 64)),
}


def missing() -> str | None:
    """Why no scan takes part; None where they do."""
    return None if (DATA / "dev").is_dir() else "dev is not under TOMOTRAIN_DATA or ../shared/data"


def whole(scan: RealScan) -> Array:
    """All of it, (z, y, x), or (t, z, y, x) of several frames."""
    frames: dict[int, list[Array]] = {}
    with open_scan(DATA / "dev" / scan.path) as opened:
        for slab in opened.slabs(32):
            frames.setdefault(slab.frame, []).append(slab.voxels)
    values = np.stack([np.concatenate(slabs) for slabs in frames.values()])
    return values if len(values) > 1 else values[0]


def values_of(scan: RealScan) -> Array:
    """Its middle, of every frame."""
    values = whole(scan)
    middle: list[slice] = [slice(None)] * (values.ndim - len(scan.crop))
    for length, side in zip(values.shape[-len(scan.crop) :], scan.crop, strict=True):
        start = max(0, (length - side) // 2)
        middle.append(slice(start, start + side))
    return np.ascontiguousarray(values[tuple(middle)])


def chosen(only: list[str] | None) -> dict[str, RealScan]:
    """The scans of these names, or all. Raises SystemExit for unknown ones, and where there are none."""
    if reason := missing():
        raise SystemExit(reason)
    if only is None:
        return SCANS
    if unknown := sorted(set(only) - set(SCANS)):
        raise SystemExit(f"no scan {', '.join(unknown)}: there are {', '.join(SCANS)}")
    return {name: SCANS[name] for name in only}
