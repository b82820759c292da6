"""Where voxels are: the same places as nibabel's, there and back, and nothing claimed that is not known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes, inv_ornt_aff

from storage.errors import InvalidScan
from storage.grid import VoxelGrid

SHAPE_ZYX = (5, 7, 11)
OBLIQUE = np.array([[-1.9, 0.2, 0.1, 90], [0.1, 1.2, -0.4, -126], [0.3, 0.5, 3.0, -72], [0, 0, 0, 1]])
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product([1, -1], repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.ravel())))
def test_voxels_stand_where_nibabel_says_in_all_48_orientations(orientation: np.ndarray) -> None:
    affine = OBLIQUE @ inv_ornt_aff(orientation, SHAPE_ZYX[::-1])
    grid = VoxelGrid.from_affine(SHAPE_ZYX, affine)
    voxels = np.random.default_rng(0).integers(0, SHAPE_ZYX, (20, 3))
    world = grid.voxel_to_world(voxels)
    np.testing.assert_allclose(world, apply_affine(affine, voxels[:, ::-1]), rtol=0, atol=1e-9)
    np.testing.assert_allclose(grid.world_to_voxel(world), voxels, rtol=0, atol=1e-9)
    assert grid.orientation == "".join(aff2axcodes(affine))
    assert grid.spacing is not None
    np.testing.assert_allclose(grid.spacing[::-1], np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-15)


def test_a_grid_survives_json_to_the_last_bit() -> None:
    for grid in (
        VoxelGrid.from_affine(SHAPE_ZYX, OBLIQUE / 3),
        VoxelGrid(SHAPE_ZYX, (1.1, 2.2, 3.3)),
        VoxelGrid(SHAPE_ZYX),
    ):
        assert VoxelGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.full((4, 4), np.nan),
        np.eye(3),
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
)
def test_an_affine_that_places_nothing_is_refused(affine: object) -> None:
    with pytest.raises(InvalidScan, match="affine"):
        VoxelGrid.from_affine(SHAPE_ZYX, affine)  # type: ignore[arg-type]


def test_a_grid_without_an_affine_claims_no_place() -> None:
    grid = VoxelGrid(SHAPE_ZYX, (1.0, 1.0, 1.0))
    assert grid.orientation is None
    with pytest.raises(ValueError, match="no affine"):
        grid.voxel_to_world([[0, 0, 0]])
    assert VoxelGrid((2**40, 2**40, 2**40)).voxels == 2**120
