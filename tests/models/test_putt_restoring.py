"""Completion and denoising: what was observed, what noise is, and that both restore what they should."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from model_fields import random_train

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.putt import completion
from models.putt.completion import Iterations, complete, completed, filled, smoothly_filled
from models.putt.denoising import (
    RULES,
    denoise,
    denoised,
    gavish_donoho,
    marchenko_pastur,
    noise_deviation,
)
from models.putt.factorising import factorised, tt_svd_by_gram
from models.putt.morton import from_morton, to_morton
from models.threads import one_thread

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def waves(side: int = 32) -> torch.Tensor:
    """Smooth, of low rank."""
    x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    return 1 + torch.sin(3 * z + 2 * y) * torch.cos(4 * x - y)


def normal(side: int, seed: int) -> torch.Tensor:
    return torch.randn((side,) * 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(side: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand((side,) * 3, generator=torch.Generator().manual_seed(seed)) < share


def test_filling_keeps_what_was_observed_and_takes_the_rest_from_the_level_above() -> None:
    values = waves(4)
    mask = torch.zeros(4, 4, 4)
    mask[0, 0, 0] = mask[0, 0, 1] = mask[3, 3, 3] = 1
    found = filled(torch.where(mask > 0, values, torch.nan), mask)
    assert torch.equal(found[mask > 0], values[mask > 0])
    first, last = (values[0, 0, 0] + values[0, 0, 1]) / 2, values[3, 3, 3]
    mean = (2 * first + last) / 3  # of the six coarse cells without an observation
    above = mean.expand(2, 2, 2).clone()
    above[0, 0, 0], above[1, 1, 1] = first, last
    weights = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    expected = torch.einsum("zyx,az,by,cx->abc", above, weights, weights, weights)
    assert torch.allclose(found[mask == 0], expected[mask == 0], atol=1e-14)


def test_a_whole_cube_is_filled_by_itself_and_constants_by_themselves() -> None:
    values = normal(8, 0)
    assert torch.equal(filled(values, torch.ones(8, 8, 8)), values)
    assert torch.allclose(filled(torch.full((16,) * 3, 7.0), kept(16, 0.05, 1)), torch.tensor(7.0).double())


@pytest.mark.parametrize("start", [None, 4])
def test_a_train_completes_what_filling_only_interpolates(start: int | None) -> None:
    """Of exact low rank, and rough: the other voxels follow from the observed ones, not from neighbours."""
    truth = random_train((8, 8, 8), 1, 0)
    values, mask = from_morton(truth.full()), kept(8, 0.6, 1)
    unseen = ~mask
    found = from_morton(
        completed(values, mask, max_rank=1, start=start, iterations=Iterations(20, 200)).full()
    )
    scale = values[unseen].square().mean()
    assert (found - values)[unseen].square().mean() < 1e-3 * scale
    assert (filled(values, mask) - values)[unseen].square().mean() > 0.3 * scale


def test_the_other_voxels_values_do_not_matter_and_a_full_mask_is_tt_svd() -> None:
    values, mask = waves(16), kept(16, 0.3, 2)
    one = completed(torch.where(mask, values, torch.nan), mask, max_rank=6)
    two = completed(torch.where(mask, values, 99.0), mask, max_rank=6)
    assert torch.equal(one.full(), two.full())
    error = (from_morton(one.full()) - values).square().mean()
    assert error < 0.01 * values.var()
    whole = completed(values, torch.ones_like(values), max_rank=6, start=16)
    assert torch.allclose(whole.full(), factorised(to_morton(values), max_rank=6).train.full(), atol=1e-10)


def test_completion_tells_how_far_it_is() -> None:
    told: list[tuple[int, int | None]] = []
    completed(
        waves(16),
        kept(16, 0.5, 3),
        max_rank=3,
        start=8,
        report=lambda _, done, total: told.append((done, total)),
    )
    assert told == [(done, 6) for done in range(7)]


def test_the_laplacian_is_symmetric_and_knows_no_constants() -> None:
    one, other = normal(8, 20), normal(8, 21)
    found = (completion._laplacian(one) * other).sum()
    assert torch.isclose(found, (one * completion._laplacian(other)).sum())
    assert not completion._laplacian(torch.full((8, 8, 8), 3.0)).any()
    inside = torch.nn.functional.conv3d(
        one[None, None], -completion._laplacian(_impulse())[1:4, 1:4, 1:4][None, None]
    )
    assert torch.allclose(completion._laplacian(one)[1:-1, 1:-1, 1:-1], -inside[0, 0])


def _impulse() -> torch.Tensor:
    impulse = torch.zeros(5, 5, 5, dtype=torch.float64)
    impulse[2, 2, 2] = 1
    return impulse


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_smooth_filling_keeps_what_was_observed_and_bends_as_little_as_it_may(share: float) -> None:
    values, mask = waves(16), kept(16, share, 8)
    found = smoothly_filled(torch.where(mask, values, torch.nan), mask)
    assert torch.equal(found[mask], values[mask])

    def bending(cube: torch.Tensor) -> float:
        return float(completion._laplacian(cube).square().sum())

    least = bending(found)
    for seed in range(5):
        other = torch.where(mask, found, found + 0.01 * normal(16, seed))
        assert bending(other) > least
    pyramid = filled(values, mask)
    assert bending(pyramid) > 3 * least
    assert (found - values).square().mean() < (pyramid - values).square().mean() / 5


def test_completion_keeps_what_was_observed_and_is_ahead_of_the_pyramid() -> None:
    values, mask = waves(), kept(32, 0.1, 9)
    found = complete(torch.where(mask, values, torch.nan), mask)
    pyramid = (filled(values, mask) - values)[~mask].square().mean().sqrt()
    off = (found.values - values)[~mask].square().mean().sqrt()
    of_train = (from_morton(found.train.full()) - values)[~mask].square().mean().sqrt()
    assert torch.equal(found.values[mask], values[mask])
    assert max(off, of_train) < pyramid / 3
    assert set(found.errors) == {"pyramid", "smooth", "train"}
    assert found.held_out == found.errors[found.source]
    assert found.held_out == pytest.approx(float(off), rel=0.5)
    again = complete(torch.where(mask, values, 7.0), mask)
    assert torch.equal(found.values, again.values)
    assert torch.equal(found.train.full(), again.train.full())


def test_hidden_voxels_choose_a_train_where_only_a_train_can_tell() -> None:
    """Of exact low rank, and rough: no filling tells anything, and few ranks tell more than many."""
    values, mask = from_morton(random_train((8,) * 4, 2, 3).full()), kept(16, 0.7, 10)
    found = complete(values, mask, rank=2)
    assert found.source == "train"
    assert torch.equal(found.values[~mask], from_morton(found.train.full())[~mask])
    assert found.train.ranks == (2, 2, 2)
    assert found.errors["train"] < 0.9 * found.errors["smooth"]
    smooth = complete(waves(16), mask, rank=1)
    assert smooth.source == "smooth"
    assert torch.equal(smooth.values, smoothly_filled(waves(16), mask))


def test_a_block_is_judged_by_blocks() -> None:
    """Near what was observed everything is told well: hidden voxels must lie as deep as those of the gap."""
    values = torch.nn.functional.interpolate(normal(16, 11)[None, None], size=32, mode="trilinear")[0, 0]
    mask = torch.ones(32, 32, 32, dtype=torch.bool)
    mask[5:17, 9:21, 14:26] = False
    found = complete(values, mask)
    off = float((found.values - values)[~mask].square().mean().sqrt())
    single = complete(values, kept(32, 0.95, 12))
    assert single.held_out is not None
    assert single.held_out < off / 2
    assert found.held_out == pytest.approx(off, rel=0.4)


def test_any_shape_is_completed_and_what_cannot_be_judged_too() -> None:
    values = waves()[:5, :17, :20]
    mask = kept(32, 0.5, 13)[:5, :17, :20]
    found = complete(values, mask)
    assert found.values.shape == (5, 17, 20)
    assert found.train.modes == (8,) * 5
    assert (found.values - values).abs().max() < 0.1
    whole = complete(values, torch.ones_like(values))
    assert torch.equal(whole.values, values)
    assert whole.errors == {}
    assert whole.held_out is None
    one = torch.zeros(1, 1, 3)
    one[0, 0, 1] = 1
    assert torch.allclose(complete(one * 5, one).values, torch.tensor(5.0, dtype=torch.float64), atol=1e-9)


def test_completion_is_cancelled_between_ranks() -> None:
    told: list[tuple[int, int | None]] = []
    complete(waves(), kept(32, 0.5, 3), report=lambda _, done, total: told.append((done, total)))
    assert told[0] == (0, told[-1][1])
    assert told[-1][0] == told[-1][1]

    class Cancelled(Exception):
        pass

    def cancel(phase: str, done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        complete(waves(), kept(32, 0.5, 3), report=cancel)
    with pytest.raises(Cancelled):
        denoise(waves(), report=cancel)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_noise_of_a_smooth_cube_is_found(sigma: float) -> None:
    assert noise_deviation(waves() + sigma * normal(32, 4)) == pytest.approx(sigma, rel=0.05)


def test_air_says_nothing_about_noise() -> None:
    cube = 0.1 * normal(32, 5)
    cube[:24] = 0
    assert noise_deviation(cube) == pytest.approx(0.1, rel=0.05)
    assert noise_deviation(torch.ones(8, 8, 8)) == 0


def test_noise_is_found_in_volumes_of_any_shape() -> None:
    assert noise_deviation(0.1 * normal(32, 5)[:9, :31, :30]) == pytest.approx(0.1, rel=0.05)
    assert noise_deviation(0.1 * normal(32, 5)[:1]) == pytest.approx(0.1, rel=0.1)
    assert noise_deviation(torch.ones(1, 1, 1)) == 0


def test_thresholds_are_the_published_ones() -> None:
    assert gavish_donoho(100, 100) == pytest.approx(10 * 4 / math.sqrt(3))
    assert gavish_donoho(30, 200) == gavish_donoho(200, 30) > marchenko_pastur(30, 200)
    largest = [float(torch.linalg.matrix_norm(normal(16, seed).reshape(64, 64), ord=2)) for seed in range(10)]
    assert sum(largest) / 10 == pytest.approx(marchenko_pastur(64, 64), rel=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_of_pure_noise_hardly_anything_is_kept_and_of_a_clean_cube_all(rule: str) -> None:
    noise = normal(32, 6)
    left = denoised(noise, rule=rule).train
    assert max(left.ranks) <= 8
    assert left.norm() ** 2 < 0.04 * noise.square().sum()
    clean = waves(16)
    assert torch.allclose(from_morton(denoised(clean, sigma=0.0, rule=rule).train.full()), clean, atol=1e-6)


@pytest.mark.parametrize(("rule", "most"), [("marchenko_pastur", 0.05), ("gavish_donoho", 0.2)])
def test_denoising_finds_ranks_that_beat_both_the_noisy_cube_and_a_fixed_rank(rule: str, most: float) -> None:
    values = waves()
    noisy = values + 0.3 * normal(32, 7)
    found = denoised(noisy, rule=rule)
    error = (from_morton(found.train.full()) - values).square().mean()
    fixed = from_morton(tt_svd_by_gram(to_morton(noisy), max_rank=40)[0].full())
    assert found.sigma == pytest.approx(0.3, rel=0.05)
    assert error < most * 0.3**2
    assert error < (fixed - values).square().mean() / 3
    assert max(denoised(noisy, rule=rule, max_rank=1).train.ranks) == 1


def test_the_mean_over_shifts_is_better_than_one_train_and_its_train_hardly_worse() -> None:
    values = waves() + (waves() > 1.3)
    noisy = values + 0.3 * normal(32, 7)

    def off(found: torch.Tensor) -> float:
        return float((found - values).square().mean())

    one = off(from_morton(denoised(noisy).train.full()))
    found = denoise(noisy)
    assert found.sigma == denoised(noisy).sigma
    assert off(found.values) < 0.8 * one
    assert off(from_morton(found.train.full())) < 1.1 * off(found.values)
    assert torch.equal(denoise(noisy).values, found.values)
    assert not torch.equal(denoise(noisy, seed=1).values, found.values)
    assert max(denoise(noisy, max_rank=3).train.ranks) == 3


def test_noise_is_taken_from_volumes_of_any_shape() -> None:
    values = waves()[:9, :31, :30]
    found = denoise(values + 0.3 * normal(32, 7)[:9, :31, :30])
    assert found.values.shape == values.shape
    assert (found.values - values).square().mean() < 0.1 * 0.3**2
    noise = denoise(normal(32, 8)[:9, :31, :30], sigma=1.0).values
    assert noise.square().mean() < 0.05


def test_what_cannot_be_restored_is_refused() -> None:
    values = waves(8)
    with pytest.raises(InvalidShape, match="0 voxels observed"):
        filled(values, torch.zeros(8, 8, 8))
    with pytest.raises(InvalidShape, match=r"mask of shape \(4, 4, 4\)"):
        completed(values, torch.ones(4, 4, 4), max_rank=2)
    with pytest.raises(NonFinite, match="observed values"):
        filled(values / 0, torch.ones(8, 8, 8))
    with pytest.raises(InvalidConfig, match="finest"):
        Iterations(finest=0)
    with pytest.raises(InvalidConfig, match="rule"):
        denoised(values, rule="soft")
    with pytest.raises(InvalidConfig, match="sigma"):
        denoised(values, sigma=-1.0)
    with pytest.raises(NonFinite):
        denoised(values * torch.nan)
    with pytest.raises(NonFinite):
        denoise(values * torch.nan)
    with pytest.raises(InvalidConfig, match="shifts"):
        denoise(values, shifts=0)
    with pytest.raises(InvalidShape, match=r"three axes of at least a voxel, not \(8, 8\)"):
        denoise(values[0])
    with pytest.raises(InvalidShape, match="0 voxels observed"):
        complete(values[:3], torch.zeros(3, 8, 8))
    with pytest.raises(InvalidShape, match="a rank cap must be at least 1, not 0"):
        complete(values, kept(8, 0.5, 0), rank=0)
    with pytest.raises(NonFinite, match="observed values"):
        complete(values / 0, torch.ones(8, 8, 8))
