"""The picture of where an answer comes from: planes lie as radiologists expect, and cubes where they were."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from storage.ingest import ingest
from storage.readers import open_scan
from storage.volume import Volume
from workers.pictures import GAP, LOWERS, PANEL, RAISES, STRIP, Cubes, saliency_png

SHAPE = (30, 40, 20)
"""(right, front, head) voxels of 2 x 1 x 3 mm."""


def stored(
    folder: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> tuple[Volume, np.ndarray[Any, Any]]:
    """A volume with a bright spot to the right, in front and above, stored any way; the spot's (z, y, x)."""
    upright = np.zeros(SHAPE, np.int16)
    upright[22:28, 30:38, 14:18] = 1000
    voxels = upright.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    affine = np.zeros((4, 4))
    for axis, (of, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[of, axis] = flip * (2.0, 1.0, 3.0)[of]
    affine[3, 3] = 1
    path = folder / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine), path)
    with open_scan(path) as scan:
        ingest(scan, folder / "scan.zarr")
    volume = Volume.open(folder / "scan.zarr")
    spot = np.argwhere(voxels.transpose(2, 1, 0) > 0).mean(axis=0)
    return volume, spot


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_right_is_left_and_front_and_head_are_above(axes: Any, flips: Any, tmp_path: Path) -> None:
    volume, spot = stored(tmp_path, axes, flips)
    cubes = Cubes(spot[None], np.array([1.0]), np.array([4.0, 4.0, 4.0]))
    with Image.open(io.BytesIO(saliency_png(volume, cubes, "notice"))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:-STRIP]
    left = 0
    order = [2 - axis for axis in range(3)]  # the stored axis (x, y, z) that each panel lies across
    for stored_axis in order:
        across = axes[stored_axis]
        inside = [axis for axis in range(3) if axis != across]
        sizes = {axis: SHAPE[axis] * (2.0, 1.0, 3.0)[axis] for axis in inside}
        columns = next(axis for axis in (0, 1) if axis in inside)  # right-left, else front-back
        (rows,) = (axis for axis in inside if axis != columns)
        scale = PANEL / max(sizes.values())
        width, height = round(sizes[columns] * scale), round(sizes[rows] * scale)
        panel = pixels[:height, left : left + width]
        left += width + GAP
        bright = np.argwhere(panel.min(axis=2) > 200)
        row, column = bright.mean(axis=0) / (height, width)
        towards = {0: 25 / 30, 1: 34 / 40, 2: 16 / 20}
        # right and front are shown to the left, front and head above
        assert column == pytest.approx(1 - towards[columns], abs=0.03)
        assert row == pytest.approx(1 - towards[rows], abs=0.03)
        orange = np.argwhere(np.abs(panel - RAISES).sum(axis=2) < 40)
        assert len(orange) > 20
        middle = (orange.min(axis=0) + orange.max(axis=0)) / 2 / (height, width)
        assert middle == pytest.approx((1 - towards[rows], 1 - towards[columns]), abs=0.04)


def test_only_cubes_that_a_plane_meets_are_drawn_in_the_colour_of_their_sign(tmp_path: Path) -> None:
    volume, spot = stored(tmp_path, (0, 1, 2), (1, 1, 1))
    far = spot - (0, 0, 20)
    cubes = Cubes(np.stack([spot, far]), np.array([2.0, -2.0]), np.array([3.0, 3.0, 3.0]))
    with Image.open(io.BytesIO(saliency_png(volume, cubes, ""))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:-STRIP]
    blue = np.argwhere(np.abs(pixels - LOWERS).sum(axis=2) < 40)
    sagittal = pixels.shape[1] - round(40 * PANEL / 60)  # the last panel lies across x
    assert len(blue) > 20
    assert (blue[:, 1] < sagittal).all()


def test_a_scan_that_does_not_say_how_it_lies_is_shown_as_stored(tmp_path: Path) -> None:
    array = np.zeros((8, 9, 10), np.uint8)
    array[6, 2, 3] = 255
    path = tmp_path / "scan.nrrd"
    import nrrd

    nrrd.write(str(path), array)
    with open_scan(path) as scan:
        ingest(scan, tmp_path / "scan.zarr")
    volume = Volume.open(tmp_path / "scan.zarr")
    assert volume.stored.grid.orientation is None
    cubes = Cubes(np.array([[3.0, 2.0, 6.0]]), np.array([0.0]), np.ones(3))
    content = saliency_png(volume, cubes, "notice")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.height == PANEL + STRIP
