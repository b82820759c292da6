"""Prolongation of trains against dense matrices, faces included."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from model_fields import random_train

from models.errors import InvalidShape
from models.putt.factorising import factorised
from models.putt.morton import from_morton, pooled, to_morton
from models.putt.prolongation import (
    CENTRED,
    CENTRED_ZERO,
    CONSTANT,
    SHIPPED,
    Stencil,
    balanced,
    padded_ranks,
    prolonged,
    prolonged_cube,
)
from models.tt.train import TensorTrain

STENCILS = {"centred": CENTRED, "centred zero": CENTRED_ZERO, "constant": CONSTANT, "shipped": SHIPPED}


def matrix(name: str, size: int) -> torch.Tensor:
    """The operator along one axis, (2 size, size), written out row by row."""
    P = torch.zeros(2 * size, size, dtype=torch.float64)
    for y in range(size):
        before, after = max(y - 1, 0), min(y + 1, size - 1)
        match name:
            case "centred" | "centred zero":
                P[2 * y, y] = P[2 * y + 1, y] = 0.75
                if y > 0 or name == "centred":
                    P[2 * y, before] += 0.25
                if y < size - 1 or name == "centred":
                    P[2 * y + 1, after] += 0.25
            case "constant":
                P[2 * y, y] = P[2 * y + 1, y] = 1
            case "shipped":
                P[2 * y, y] = 1
                P[2 * y + 1, y] = 0.5
                if y > 0:
                    P[2 * y + 1, y - 1] = 0.5
    return P


def cube(side: int, seed: int) -> torch.Tensor:
    return torch.rand((side,) * 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(name: str, values: torch.Tensor) -> torch.Tensor:
    P = matrix(name, values.shape[0])
    return torch.einsum("zyx,az,by,cx->abc", values, P, P, P)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("name", STENCILS)
def test_a_train_is_prolonged_as_the_dense_cube_faces_included(name: str, levels: int) -> None:
    train = random_train((8,) * levels, 2, levels)
    expected = dense(name, from_morton(train.full()))
    found = from_morton(prolonged(train, STENCILS[name]).full())
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)
    assert (prolonged_cube(from_morton(train.full()), STENCILS[name]) - expected).abs().max() <= 1e-12 * (
        1 + expected.abs().max()
    )


def test_a_full_cube_of_one_level_is_prolonged_too() -> None:
    values = cube(2, 0)
    train = factorised(to_morton(values)).train
    assert torch.allclose(from_morton(prolonged(train).full()), dense("centred", values), atol=1e-12)


def test_bonds_are_five_with_faces_three_without_and_one_for_constants() -> None:
    assert [stencil.bond for stencil in (CENTRED, CENTRED_ZERO, SHIPPED, CONSTANT)] == [5, 3, 2, 1]
    train = random_train((8, 8, 8), 3, 0)
    assert prolonged(train, CONSTANT).ranks == (3, 3, 1)


def test_another_sign_or_another_boundary_is_another_operator() -> None:
    """The tests above would see them: each of these differs by far more than what they allow."""
    values = cube(8, 1)
    expected = dense("centred", values)
    turned = Stencil({(0, 0): 3 / 4, (0, 1): 1 / 4, (1, 0): 3 / 4, (1, -1): 1 / 4}, repeat=False)
    for other in (turned, CENTRED_ZERO, SHIPPED, CONSTANT):
        assert (prolonged_cube(values, other) - expected).abs().max() > 1e-2


def test_constants_are_repeated_and_linear_functions_go_on_away_from_the_faces() -> None:
    assert torch.allclose(prolonged_cube(torch.ones(4, 4, 4)), torch.ones(8, 8, 8))
    centres = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    values = 2 * centres[:, None, None] - centres[:, None] + 3 * centres
    fine = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    expected = 2 * fine[:, None, None] - fine[:, None] + 3 * fine
    inner = (slice(1, -1),) * 3
    assert torch.allclose(prolonged_cube(values)[inner], expected[inner], atol=1e-14)


def test_pooled_again_the_centred_stencil_is_one_eighth_of_the_second_difference_away() -> None:
    values = cube(8, 2)
    D = -2 * torch.eye(8, dtype=torch.float64)
    D += torch.diag(torch.ones(7, dtype=torch.float64), 1) + torch.diag(
        torch.ones(7, dtype=torch.float64), -1
    )
    D[0, 0] = D[7, 7] = -1
    S = torch.eye(8, dtype=torch.float64) + D / 8
    expected = torch.einsum("zyx,az,by,cx->abc", values, S, S, S)
    assert torch.allclose(pooled(prolonged_cube(values)), expected, atol=1e-14)
    assert torch.allclose(pooled(prolonged_cube(values, CONSTANT)), values, atol=1e-15)
    assert not torch.allclose(pooled(prolonged_cube(values)), values, atol=1e-2)


def test_with_a_cap_the_train_is_near_to_the_best_of_these_ranks() -> None:
    coarse = factorised(to_morton(cube(8, 3).cumsum(0).cumsum(1)), max_rank=8).train
    whole = to_morton(prolonged_cube(from_morton(coarse.full())))
    found = prolonged(coarse, max_rank=12)
    assert max(found.ranks) <= 12
    error = (found.full() - whole).square().sum()
    assert error <= 1.5 * factorised(whole, max_rank=12).bound_high
    assert prolonged(coarse, max_rank=(8, 10, 8)).ranks == (8, 10, 8)


def test_ranks_that_were_lost_come_back_as_small_noise_from_the_seed() -> None:
    train = random_train((8, 8, 8, 8), 2, 4)
    grown = padded_ranks(train, 20, seed=1)
    assert grown.ranks == (8, 20, 8)
    assert torch.allclose(balanced(train).full(), train.full(), atol=1e-12)
    kept = [
        core[:left, :, :right]
        for core, (left, right) in zip(grown.cores, pairwise((1, 2, 2, 2, 1)), strict=True)
    ]
    assert torch.allclose(TensorTrain(tuple(kept)).full(), train.full(), atol=1e-12)
    assert 0 < (grown.full() - train.full()).norm() < 0.2 * train.norm()
    assert torch.equal(grown.full(), padded_ranks(train, 20, seed=1).full())
    assert not torch.equal(grown.cores[1], padded_ranks(train, 20, seed=2).cores[1])
    scales = torch.stack([core.square().mean() for core in balanced(train).cores])
    assert torch.allclose(scales, scales[0].expand(4))


def test_other_modes_are_refused() -> None:
    with pytest.raises(InvalidShape, match="modes of 8"):
        prolonged(random_train((8, 4), 2, 0))
