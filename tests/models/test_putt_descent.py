"""Descent, coarse to fine: the loss is what it says, coarse to fine helps, and the same seed gives the same
bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from model_fields import random_train

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.putt import descent as module
from models.putt.descent import DescentConfig, Schedule, contracted, descended, random_start
from models.putt.factorising import factorised
from models.putt.morton import from_morton, pooled, pyramid, to_morton
from models.putt.prolongation import SHIPPED, prolonged, prolonged_cube
from models.threads import one_thread

pytestmark = pytest.mark.usefixtures("single_thread")

SCHEDULE = Schedule(start=4, upsample_at=(40, 100), steps=240, rate=0.05, warm_up=10)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def blob(side: int = 16) -> torch.Tensor:
    """Smooth bumps and an edge, from 0 to 1."""
    x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    bump = torch.exp(-((z - 0.4) ** 2 + (y - 0.6) ** 2 + 2 * (x - 0.5) ** 2) * 8)
    values = bump * (1 + 0.3 * torch.sin(9 * x + 5 * y)) + 0.5 * ((z + y + x) > 1.7)
    return values / values.max()


def error(found: torch.Tensor, values: torch.Tensor) -> float:
    return float((found - values).square().mean())


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_entries_that_meet_in_the_middle_are_those_of_the_train(levels: int) -> None:
    train = random_train((8,) * levels, 3, levels)
    found = contracted(train.cores)
    assert found.shape == (8 ** (levels // 2), 8 ** (levels - levels // 2))
    assert torch.allclose(found.flatten(), train.full().flatten(), rtol=1e-12, atol=1e-12)


def test_a_random_start_has_entries_of_variance_one() -> None:
    squares = [random_start(4, 12, seed).full().square().mean() for seed in range(20)]
    assert 0.7 < torch.stack(squares).mean() < 1.4


def test_rates_rise_over_the_warm_up_and_fall_to_a_tenth() -> None:
    schedule = Schedule(start=8, upsample_at=(16, 48, 144), steps=512)
    assert schedule == Schedule.paper(64)
    assert schedule.lengths == (16, 32, 96, 368)
    assert schedule.side == 64
    assert schedule.rate_at(0, 0) == pytest.approx(8e-3 / 16)
    assert schedule.rate_at(3, 49) == pytest.approx(8e-3 * 0.9**3)
    assert schedule.rate_at(3, 367) == pytest.approx(8e-4 * 0.9**3)
    assert schedule.rate_at(3, 50) > schedule.rate_at(3, 51)


@pytest.mark.parametrize("device", DEVICES)
def test_coarse_to_fine_comes_near_the_certified_bound_and_direct_descent_does_not(device: str) -> None:
    values = blob().to(device)
    bounds = factorised(to_morton(values), max_rank=10)
    config = DescentConfig(max_rank=10)
    found = descended(values, SCHEDULE, config, seed=0)
    least, found_ranks = bounds.bound_low / 16**3, found.train.ranks
    assert found_ranks == bounds.train.ranks
    assert len(found.losses) == 3
    coarse_to_fine = error(from_morton(found.train.full()), values)
    direct = descended(values, Schedule.direct(16, SCHEDULE.steps, SCHEDULE.rate), config, seed=0)
    assert least <= coarse_to_fine <= 1.6 * least
    missed = error(from_morton(direct.train.full()), values)
    assert missed > 2 * coarse_to_fine


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_weighted_mean_of_its_definition(loss: str, masked: bool) -> None:
    target = blob(8)
    weights = torch.arange(512, dtype=torch.float64).reshape(8, 8, 8) if masked else None
    config = DescentConfig(max_rank=3, loss=loss, huber=0.2, double=True)
    train = random_train((8, 8, 8), 3, 0)
    descent = module._LevelDescent(target, weights, train, config, 0)
    descent.step(0.0)
    off = from_morton(train.full()) - target
    each = {
        "mse": off.square(),
        "l1": off.abs(),
        "huber": torch.where(off.abs() < 0.2, off.square() / 2, 0.2 * (off.abs() - 0.1)),
    }[loss]
    expected = each.mean() if weights is None else (weights * each).sum() / weights.sum()
    assert torch.isclose(descent.loss, expected, rtol=1e-12)


def test_what_was_not_observed_has_no_say() -> None:
    values, config = blob(), DescentConfig(max_rank=6)
    mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    short = replace(SCHEDULE, upsample_at=(10, 20), steps=30)
    one = descended(torch.where(mask, values, torch.nan), short, config, seed=0, mask=mask)
    two = descended(torch.where(mask, values, 1e9), short, config, seed=0, mask=mask)
    assert torch.equal(one.train.full(), two.train.full())
    whole = descended(values, short, config, seed=0)
    assert not torch.equal(one.train.full(), whole.train.full())


def test_between_few_observed_voxels_the_level_above_has_a_say() -> None:
    """At full rank: what was observed is fitted, and anything between."""
    generator = torch.Generator().manual_seed(2)
    values, mask = blob() + 0.3 * torch.rand((16,) * 3, generator=generator), blob() > 2
    mask[torch.rand(mask.shape, generator=generator) < 0.1] = True

    def missed(prior: float) -> float:
        config = DescentConfig(max_rank=64, prior=prior)
        found = descended(values, SCHEDULE, config, seed=0, mask=mask).train.full()
        return error(from_morton(found)[~mask], values[~mask])

    assert missed(0.1) < 0.8 * missed(0.0)


def test_targets_of_cells_without_an_observation_come_from_the_level_above() -> None:
    values, mask = blob(8), torch.zeros(8, 8, 8)
    mask[0, 0, 0] = mask[7, 7, 7] = 1
    coarse, fine = module._with_prior(pyramid(values, mask, 4), 0.1)
    assert coarse[0][0, 0, 0] == values[0, 0, 0]
    assert torch.isclose(coarse[0][1, 2, 1], (values[0, 0, 0] + values[7, 7, 7]) / 2)
    assert coarse[1].sum() == 2
    unseen = mask == 0
    assert torch.equal(fine[0][unseen], prolonged_cube(coarse[0])[unseen])
    assert torch.equal(fine[0][~unseen], values[~unseen])
    assert torch.equal(fine[1], torch.where(unseen, 0.1, 1.0).double())


def test_robust_losses_pass_over_outliers() -> None:
    values = blob()
    wrong = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.04
    spoilt = torch.where(wrong, 2.0, values)
    errors = {
        loss: error(
            from_morton(
                descended(spoilt, SCHEDULE, DescentConfig(max_rank=6, loss=loss), seed=0).train.full()
            ),
            values,
        )
        for loss in ("mse", "l1", "huber")
    }
    assert errors["l1"] < errors["mse"] / 2
    assert errors["huber"] < errors["mse"] / 2


@pytest.mark.parametrize("reference", [False, True])
def test_the_same_seed_gives_the_same_bits_and_a_scale_only_scales(reference: bool) -> None:
    values, config = blob(), DescentConfig(max_rank=6, reference=reference)
    short = replace(SCHEDULE, upsample_at=(5, 10), steps=20)
    state = torch.random.get_rng_state()
    first = descended(values, short, config, seed=3).train.full()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, descended(values, short, config, seed=3).train.full())
    assert not torch.equal(first, descended(values, short, config, seed=4).train.full())
    assert torch.equal(1024 * first, descended(1024 * values, short, config, seed=3).train.full())


def test_a_warm_start_goes_on_from_where_it_stands() -> None:
    values = blob(8) * 50
    train = factorised(to_morton(values), max_rank=12).train
    still = Schedule(start=8, upsample_at=(), steps=1, rate=1e-12)
    config = DescentConfig(max_rank=12, double=True)
    went_on = descended(values, still, config, seed=0, start=train)
    assert torch.allclose(went_on.train.full(), train.full(), atol=1e-6)
    assert went_on.losses[0] == pytest.approx(
        error(train.full(), to_morton(values)) / float(values.max()) ** 2
    )
    with pytest.raises(InvalidShape, match="starts with 3 levels"):
        descended(values, still, config, seed=0, start=random_train((8, 8), 2, 0))


def test_a_refined_train_keeps_its_scale_and_regains_its_ranks_but_the_references_neither() -> None:
    coarse = factorised(to_morton(pooled(blob())), max_rank=40).train
    ours = module._refined(coarse, DescentConfig(max_rank=40), 0)
    theirs = module._refined(coarse, DescentConfig(max_rank=40, reference=True), 0)
    assert ours.ranks == (8, 40, 8)
    assert max(theirs.ranks[1:]) <= 27
    assert torch.isclose(theirs.norm(), coarse.norm(), rtol=1e-9)
    assert 2.6 < ours.norm() / coarse.norm() < 2.9
    shipped = prolonged(coarse, SHIPPED)
    assert torch.allclose(theirs.full() * (shipped.norm() / coarse.norm()), shipped.full(), atol=1e-2)


def test_progress_is_told_and_cancels() -> None:
    told: list[int] = []

    class Cancelled(Exception):
        pass

    def report(phase: str, done: int, total: int | None) -> None:
        assert (phase, total) == ("descending", SCHEDULE.steps)
        told.append(done)
        if done >= 48:
            raise Cancelled

    with pytest.raises(Cancelled):
        descended(blob(), SCHEDULE, DescentConfig(max_rank=4), seed=0, report=report)
    assert told == [0, 16, 32, 48]


def test_what_runs_away_or_does_not_fit_is_refused() -> None:
    values, config = blob(), DescentConfig(max_rank=4)
    with pytest.raises(NonFinite, match=r"the loss of step \d+ \(lower the rate, 1e\+06\)"):
        descended(values, Schedule.direct(16, 200, rate=1e6), config, seed=0)
    with pytest.raises(InvalidShape, match="ends at side 16, the cube has 8"):
        descended(blob(8), SCHEDULE, config, seed=0)
    with pytest.raises(InvalidShape, match="0 voxels observed"):
        descended(values, SCHEDULE, config, seed=0, mask=torch.zeros(values.shape))
    with pytest.raises(NonFinite, match="values"):
        descended(values / 0, SCHEDULE, config, seed=0)
    for wrong in ({"loss": "l3"}, {"noise": 0.0}, {"prior": 1.5}):
        with pytest.raises(InvalidConfig, match=next(iter(wrong))):
            DescentConfig(**wrong)
    for setting, value in (("upsample_at", (9, 9)), ("start", 12), ("rate", 0.0), ("steps", 0)):
        with pytest.raises(InvalidConfig, match=setting):
            Schedule(**{setting: value})
    with pytest.raises(InvalidConfig, match="side"):
        Schedule.paper(48)
