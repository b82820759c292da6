"""Cubes from the middle of real scans, of values from 0 to 1: what trains of single cubes are measured on.

Where a scan has fewer voxels along an axis than the cube, its border is repeated: `head_ct` has 58 planes,
`stroke_t1` 124 columns; of `abdomen_ct` at 128^3 two thirds are measured. `head_ct` is smooth: it was
resampled by who made it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.real_scans import RealScan, missing, values_of

FILES = {
    "stroke_t1": ("nifti/stroke_T1.nii.gz", "MR"),
    "abdomen_ct": ("nifti/example_ct.nii.gz", "CT"),
    "head_ct": ("nifti/CT_pitch.nii.gz", "CT"),
}


def scan_cube(name: str, side: int) -> Tensor:
    """(side, side, side) in float64. Raises SystemExit where there are no scans."""
    if reason := missing():
        raise SystemExit(reason)
    middle = values_of(RealScan(*FILES[name], (side,) * 3)).astype(np.float64)
    short = [side - length for length in middle.shape]
    whole = np.pad(middle, [(lack // 2, lack - lack // 2) for lack in short], mode="edge")
    return torch.from_numpy((whole - whole.min()) / np.ptp(whole))


def decibels(squares: Tensor) -> float:
    """The PSNR of squared errors where the peak is 1."""
    return -10 * float(squares.mean().log10())
