"""Cubes by the bits of their places, against the definition voxel by voxel."""

from __future__ import annotations

import pytest
import torch

from models.errors import InvalidShape
from models.putt.morton import from_morton, levels_of, pooled, pyramid, to_morton


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_digits_are_the_bits_of_z_y_x_coarse_first(levels: int) -> None:
    side = 2**levels
    cube = torch.arange(side**3).reshape(side, side, side)
    by_digits = to_morton(cube)
    assert by_digits.shape == (8,) * levels
    for z, y, x in torch.cartesian_prod(*(torch.arange(side),) * 3).tolist():
        bits = [levels - 1 - level for level in range(levels)]
        place = tuple(4 * (z >> b & 1) + 2 * (y >> b & 1) + (x >> b & 1) for b in bits)
        assert by_digits[place] == cube[z, y, x]


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32, 64])
def test_a_cube_comes_back(side: int) -> None:
    cube = torch.arange(side**3, dtype=torch.float64).reshape(side, side, side)
    there = to_morton(cube)
    assert there.is_contiguous()
    assert torch.equal(from_morton(there), cube)
    assert torch.equal(from_morton(there.flatten()), cube)


def test_other_shapes_are_refused() -> None:
    for shape in ((3, 3, 3), (4, 4, 2), (1, 1, 1), (4, 4)):
        with pytest.raises(InvalidShape):
            to_morton(torch.zeros(shape))
    for count in (1, 7, 16):
        with pytest.raises(InvalidShape, match="fill no cube"):
            from_morton(torch.zeros(count))
    with pytest.raises(InvalidShape, match="power of two"):
        levels_of(12)


def test_a_level_above_is_the_mean_over_the_last_digit() -> None:
    cube = torch.rand((8, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(to_morton(pooled(cube)), to_morton(cube).mean(dim=-1), atol=1e-15)


def test_levels_of_a_masked_cube_are_means_of_what_was_observed() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand((8, 8, 8), generator=generator, dtype=torch.float64)
    seen = (torch.rand((8, 8, 8), generator=generator, dtype=torch.float64) < 0.3).double()
    seen[:4, :4, :4] = 0
    values[seen == 0] = torch.nan
    (coarse, count), *_, (fine, whole) = pyramid(values, seen, 2)
    assert count is not None
    assert coarse[0, 0, 0] == 0 == count[0, 0, 0]
    block, kept = values[4:, :4, 4:], seen[4:, :4, 4:] > 0
    assert torch.isclose(coarse[1, 0, 1], block[kept].mean())
    assert count[1, 0, 1] == kept.sum()
    assert torch.equal(fine[seen > 0], values[seen > 0])
    assert whole is seen
    with pytest.raises(InvalidShape, match="no level of side 16"):
        pyramid(values, seen, 16)
