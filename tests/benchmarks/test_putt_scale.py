"""The cube is the scan, mirrored; and all steps run, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.scans import nifti

from benchmarks.putt_scale import COLUMNS, Mirrored, measured, mirrored


def test_a_cube_repeats_the_scan_without_seams() -> None:
    assert mirrored(3, 8).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    cube = np.concatenate([slab.voxels for slab in Mirrored(voxels, 9).slabs(4)])
    assert cube.shape == (9, 9, 9)
    np.testing.assert_array_equal(cube[:2, :3, :4], voxels)
    np.testing.assert_array_equal(cube[2:4, 3:6, 4:8], voxels[::-1, ::-1, ::-1])


@pytest.mark.slow
def test_a_small_cube_from_making_to_reading(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(nifti((60, 50, 40)))
    row = measured(72, tmp_path / "scan.nii.gz")
    assert set(COLUMNS) <= row.keys()
    assert row["ratio"] >= 20
    assert row["mvoxel_s"] > row["whole_mvoxel_s"] > 0
