"""Covering wanted voxels by boxes: each once, at little cost, for volumes of whichever size."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.cpic.encoder import identity, random_cpic
from models.cpic.geometry import BOX_COST, POINT, SHAPES, VOXEL_COST, Boxes, Sides, convolution_work, cover
from models.intensities import IntensityStatistics

WIDTHS = (1, 5, 15, 25, 16)
STATISTICS = IntensityStatistics(0.0, 1.0, 0.5, 0.3)
ENCODER = random_cpic(1, 16, 0, STATISTICS, torch.device("cpu"))
Voxels = NDArray[np.int64]


def linear(zyx: Voxels, shape: Sides) -> Voxels:
    return np.asarray((zyx[..., 0] * shape[1] + zyx[..., 1]) * shape[2] + zyx[..., 2])


def covered(found: tuple[Boxes, ...], shape: Sides) -> Voxels:
    """The linear voxel of each wanted voxel's output, by the definition, in the order of `rows`."""
    voxels = np.full(sum(len(boxes.rows) for boxes in found), -1)
    for boxes in found:
        box, offset = np.divmod(boxes.at, prod(boxes.sides))
        places = boxes.corners[box] + np.stack(np.unravel_index(offset, boxes.sides), axis=-1)
        assert (voxels[boxes.rows] == -1).all()
        voxels[boxes.rows] = linear(places, shape)
    return voxels


def cost(found: tuple[Boxes, ...]) -> int:
    return sum(len(boxes) * ENCODER.work(boxes.sides).cost for boxes in found)


def shapes(found: tuple[Boxes, ...]) -> dict[Sides, tuple[int, int]]:
    """By sides: (boxes, wanted voxels in them)."""
    return {boxes.sides: (len(boxes), len(boxes.rows)) for boxes in found}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    share=st.sampled_from([0.0001, 0.003, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 1000),
)
def test_each_voxel_is_one_output_of_one_box(shape: Sides, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.permutation(prod(shape))[: min(5000, 1 + int(share * prod(shape)))]
    found = cover(voxels, shape, ENCODER.work)
    np.testing.assert_array_equal(covered(found, shape), voxels)
    points = len(voxels) * ENCODER.work(POINT).cost
    assert cost(found) <= points
    for boxes in found:
        assert len(np.unique(boxes.corners, axis=0)) == len(boxes)
        assert (np.diff(boxes.at) > 0).all()


def test_no_voxels_need_no_boxes() -> None:
    assert cover(np.empty(0, np.int64), (9, 9, 9), ENCODER.work) == ()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_runs_along_any_axis_are_tubes(axis: int) -> None:
    shape = (256, 256, 256)
    at = np.random.default_rng(axis).permutation(256)[:30].reshape(10, 1, 3) + np.zeros((10, 256, 3), int)
    at[:, :, axis] = np.arange(256)
    tube = tuple(64 if k == axis else 1 for k in range(3))
    found = cover(linear(at, shape).ravel(), shape, ENCODER.work)
    assert shapes(found) == {tube: (40, 2560)}


def test_sheets_are_planes_dense_parts_are_bricks_and_the_rest_are_points() -> None:
    shape = (8192, 8192, 8192)
    corner = np.array([4096, 160, 800])
    sheet = np.argwhere(np.ones((1, 64, 64))) + corner
    brick = np.argwhere(np.ones((32, 32, 32))) + corner + 1024
    lonely = np.random.default_rng(0).integers(0, 8192, (500, 3))
    voxels = np.unique(linear(np.concatenate([sheet, brick, lonely]), shape))
    assert shapes(cover(voxels, shape, ENCODER.work)) == {
        POINT: (500, 500),
        (1, 16, 16): (16, 4096),
        (16, 16, 16): (8, 32768),
    }


@pytest.mark.parametrize("sides", SHAPES)
def test_a_box_is_used_from_its_break_even_on(sides: Sides) -> None:
    """64 tiles of one shape, each with random voxels in it: fewer and more than it is worth."""
    shape = (64, 64, 64 * 64)
    least = ENCODER.work(sides).cost / ENCODER.work(POINT).cost
    corners = np.stack([np.zeros(64, int), np.zeros(64, int), np.arange(64) * 64], axis=-1)
    offsets = np.stack(np.unravel_index(np.arange(prod(sides)), sides), axis=-1)
    rng = np.random.default_rng(0)

    def found(count: int) -> int:
        chosen = np.concatenate([corner + rng.permutation(offsets)[:count] for corner in corners])
        return cost(cover(linear(chosen, shape), shape, ENCODER.work))

    above = min(prod(sides), int(1.3 * least) + 1)
    assert found(above) <= 64 * ENCODER.work(sides).cost
    below = int(0.3 * least)
    assert below == 0 or found(below) == 64 * below * ENCODER.work(POINT).cost


def test_work_is_that_of_the_papers_convolutions() -> None:
    """Multiplications per output voxel of the paper's network: isolated, tube, plane, dense."""
    far = 4096
    assert convolution_work(WIDTHS, 3, POINT).multiplications == 583_605
    for outputs, expected in (((1, 1, far), 159_165), ((1, far, far), 52_245), ((far,) * 3, 23_085)):
        per_voxel = convolution_work(WIDTHS, 3, outputs).multiplications / prod(outputs)
        assert expected <= per_voxel <= 1.01 * expected
    work = convolution_work(WIDTHS, 3, (2, 3, 4))
    assert work.voxels == 10 * 11 * 12
    assert work.numbers == 1320 + 5 * 8 * 9 * 10 + 15 * 6 * 7 * 8 + 25 * 4 * 5 * 6 + 16 * 24
    assert work.cost == work.multiplications + work.row_ends + VOXEL_COST * 1320 + BOX_COST
    more = convolution_work(WIDTHS, 3, (2, 3, 5))
    assert more.multiplications == work.multiplications + work.row_ends


def test_an_encoder_of_single_voxels_has_points_alone() -> None:
    encoder = identity(1, 1, 0, STATISTICS, torch.device("cpu"))
    voxels = np.arange(16**3)
    assert shapes(cover(voxels, (16, 16, 16), encoder.work)) == {POINT: (4096, 4096)}
