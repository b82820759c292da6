"""What an encoder learns from: pooled moments of random voxels, and principal features of trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource
from small_cohorts import Killed, KilledAt, Memory, cohort_of, smooth_scans, textured_scans
from torch import Tensor

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.encoding import Batch
from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.moments import Pooling
from models.cpic.projection import Basis
from models.cpic.random_voxels import draw
from models.cpic.strategies import Randomly
from models.errors import InvalidConfig
from models.learning.cohort import Cohort, Inputs
from models.learning.task import QUANTILE_LEVELS, Task
from models.regressors import encoders
from models.regressors.cpic import Cpic
from models.regressors.encoders import (
    EncoderConfig,
    EncoderWithHead,
    PooledLearner,
    ProjectedLearner,
    ProjectionConfig,
    calibrated,
    linear_outputs,
    recalibrated,
    seeds_of,
    standardised,
    volumes_of,
)
from models.regressors.neural import Answers
from models.threads import one_thread
from models.training import History, Step, TrainingConfig, Watch, train
from models.tt.gram import gram

CPU = torch.device("cpu")
SHAPE = (8, 8, 10)
SMALL = EncoderConfig(hidden=(3,), features=2)
POOLING = Pooling("hat", 2)
STEP = Step(0, 0, 12345)
MEAN, QUANTILES, CLASSES = Task("mean"), Task("quantiles"), Task("classes", ("few", "some", "many"))


def cohort(scans: int = 8, *, rows: int = 1, covariates: int = 0, task: Task = MEAN, seed: int = 0) -> Cohort:
    """Scans with a texture in a share of them, which is the target (a third of 0..1 for classes)."""
    volumes, shares = textured_scans(scans, seed, SHAPE)
    scan_of = np.repeat(np.arange(scans), rows)
    beside = np.random.default_rng(seed).normal(size=(len(scan_of), covariates))
    inputs = Inputs(tuple(ArraySource(volume) for volume in volumes), scan_of, beside)
    targets = np.floor(3 * shares) if task is CLASSES else shares
    return Cohort(inputs, tuple(f"p{number}" for number in range(scans)), targets[scan_of])


def network(
    width: int, task: Task = MEAN, *, double: bool = True, config: EncoderConfig = SMALL
) -> EncoderWithHead:
    """An encoder and a linear head that is not zero."""
    encoder, head = config.network(1, 0, CPU), linear_outputs(width, task.outputs, CPU)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return EncoderWithHead(encoder.double() if double else encoder, head)


def pooled(made: Cohort, task: Task = MEAN, *, voxels: int = 40, **how: Any) -> PooledLearner:
    covariates = made.inputs.covariates
    own = network(8 * 3 + covariates.shape[1], task, **how)
    strategy = Randomly(voxels, POOLING)
    return PooledLearner(own, made, Answers.of(task, made.targets), covariates, strategy, CPU)


def projected(
    made: Cohort, config: ProjectionConfig, *, task: Task = MEAN, double: bool = True
) -> ProjectedLearner:
    covariates = made.inputs.covariates
    own = network(config.count + covariates.shape[1], task, double=double)
    answers = Answers.of(task, made.targets)
    return ProjectedLearner(own, made, answers, covariates, LearnedCpic(own.encoder), config, CPU)


def gradient(learner: PooledLearner | ProjectedLearner, items: Array, step: Step = STEP) -> list[Tensor]:
    weights = list(learner.weights.parameters())
    return list(torch.autograd.grad(learner.loss(items, step), weights))


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """The relative distance of two gradients."""
    a, b = (torch.cat([each.flatten() for each in gradients]) for gradients in (first, second))
    return float((a - b).norm() / b.norm())


def slope(learner: PooledLearner | ProjectedLearner, items: Array, directions: list[Tensor]) -> float:
    """How the loss changes along a direction of all weights, by differences."""
    step, told = 1e-6, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for weight, direction in zip(learner.weights.parameters(), directions, strict=True):
                weight.add_(sign * step * direction)
        told.append(float(learner.loss(items, STEP).detach()))
    return (told[0] - told[1]) / (2 * step)


def random_directions(learner: PooledLearner | ProjectedLearner) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [weight.shape for weight in learner.weights.parameters()]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many voxels each batch that goes through a network holds."""
    counts, features = [], Batch.features

    def watched(batch: Batch) -> Tensor:
        counts.append(len(batch.rows))
        return features(batch)

    monkeypatch.setattr(Batch, "features", watched)
    return counts


# The encoder


def cubes(count: int, channels: int, size: int) -> Tensor:
    return torch.randn(count, channels, size, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden", [(3,), (4, 6), (5, 15, 25)])
@pytest.mark.parametrize("intensity", [False, True])
def test_an_encoder_has_the_widths_that_it_was_asked_for(hidden: tuple[int, ...], intensity: bool) -> None:
    config = EncoderConfig(hidden, 7, sigmoid=False, intensity=intensity)
    encoder, widths = config.network(2, 0, CPU), (2, *hidden, 7)
    weights = sum(27 * a * b + b for a, b in pairwise(widths))
    assert sum(weight.numel() for weight in encoder.parameters()) == weights
    assert encoder.cube_size == 3 + 2 * len(hidden)
    assert encoder.features == (9 if intensity else 7)
    made = encoder(cubes(3, 2, encoder.cube_size + 1))
    assert made.shape == (3, encoder.features, 2, 2, 2)
    assert bool((made[:, :7] < 0).any())  # no sigmoid, no ReLU at the end


@one_thread()
def test_with_a_negative_slope_no_start_has_units_that_nothing_moves() -> None:
    boxes, seeds = cubes(40, 1, 9), range(30, 40)

    def still(config: EncoderConfig, seed: int) -> int:
        """How many units' weights take no gradient from any cube."""
        made = config.network(1, seed, CPU)
        directions = torch.randn(40, made.features, generator=torch.Generator().manual_seed(seed))
        (made(boxes).flatten(1) * directions).sum().backward()
        return sum(int((w.grad == 0).flatten(1).all(dim=1).sum()) for w in made.parameters() if w.ndim > 1)

    assert not any(still(EncoderConfig(), seed) for seed in seeds)
    assert any(still(EncoderConfig(negative_slope=0.0), seed) for seed in seeds)


def test_the_papers_encoder_ends_with_a_sigmoid_and_has_no_intensity() -> None:
    config = Cpic.paper().encoder
    assert config == EncoderConfig((5, 15, 25), 16, 0.0, sigmoid=True, intensity=False)
    made = config.network(1, 0, CPU)(100 * cubes(20, 1, 9))
    assert made.shape == (20, 16, 1, 1, 1)
    low, high = float(made.detach().min()), float(made.detach().max())
    assert (low, high) == pytest.approx((0, 1), abs=0.01)
    assert 0 <= low < high <= 1


def test_the_intensity_is_the_mean_over_the_cube_of_each_channel() -> None:
    encoder, volume = EncoderConfig((3, 4), 2).network(2, 0, CPU), cubes(1, 2, 11)
    made = encoder(volume)[0, 2:].detach().numpy()
    for z, y, x in np.ndindex(5, 5, 5):
        cube = volume[0, :, z : z + 7, y : y + 7, x : x + 7].numpy()
        assert made[:, z, y, x] == pytest.approx(cube.mean(axis=(1, 2, 3)), abs=1e-6)
    without = CpicEncoder(2, 2, 0, hidden=(3, 4), negative_slope=0.1, sigmoid=False)
    assert torch.equal(encoder(volume)[:, :2], without(volume))


def test_calibrated_features_have_mean_0_and_variance_1_over_voxels_of_the_scans_and_keep_the_limit() -> None:
    made = cohort(5)
    encoder = calibrated(SMALL.network(1, 0, CPU), made.inputs.scans, 7, CPU)
    volumes = volumes_of(made.inputs.scans, encoder, CPU)
    raw = volumes_of(made.inputs.scans, LearnedCpic(encoder.network), CPU)
    drawn = [draw(SHAPE, encoders.CALIBRATION_VOXELS, seed)[0] for seed in seeds_of(7, 5)]
    unlimited = replace(encoder, limit=100.0)
    seen = torch.cat(
        [v.features(at) for v, at in zip(volumes_of(made.inputs.scans, unlimited, CPU), drawn, strict=True)]
    )
    assert seen.shape == (5 * 256, 3)
    assert torch.allclose(seen.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(seen.var(dim=0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-5)
    every = np.arange(int(np.prod(SHAPE)))
    assert encoder.shift is not None
    assert encoder.scale is not None
    for volume, plain in zip(volumes, raw, strict=True):
        expected = ((plain.features(every).float() - encoder.shift) / encoder.scale).clamp(-4, 4)
        assert torch.allclose(volume.features(every).float(), expected, atol=1e-6)
    assert encoder.value_range == (-encoders.LIMIT, encoders.LIMIT)
    bright = EncodedVoxels(ArraySource(np.full(SHAPE, 1e4)), encoder, CPU).features(every)
    assert float(bright.abs().max()) == encoders.LIMIT


def test_features_that_never_vary_are_calibrated_to_zero() -> None:
    encoder = SMALL.network(1, 0, CPU)
    flat = [ArraySource(np.full(SHAPE, 0.3), padding=0.3) for _ in range(2)]
    learned = calibrated(encoder, flat, 0, CPU)
    values = EncodedVoxels(flat[0], learned, CPU).features(np.arange(50))
    assert float(values.abs().max()) < 1e-5


# Pooled moments


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("chunk", "times"), [(2048, 1), (64, 2)])
def test_a_scan_is_encoded_once_in_a_step_whatever_the_number_of_its_rows(
    rows: int, chunk: int, times: int, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or twice, without a graph and with it, where the voxels are more than a chunk."""
    monkeypatch.setattr(encoders, "CHUNK", chunk)
    learner = pooled(cohort(6, rows=rows), voxels=40)
    gradient(learner, np.array([4, 1, 5]))
    assert sum(encoded) == times * 3 * 40
    gradient(learner, np.array([4, 1, 5]))
    assert sum(encoded) == times * 3 * 40 * 2 - (3 * 40 if times == 2 else 0)  # weights stood still


def by_the_formula(learner: PooledLearner, made: Cohort, task: Task, items: Array, voxels: int) -> Tensor:
    """The loss of PooledLearner by its definition, every cube on its own."""
    own, moments = learner.weights, []
    assert isinstance(own, EncoderWithHead)
    assert isinstance(own.encoder, CpicEncoder)
    margin = own.encoder.cube_size // 2
    for scan, seed in zip(items.tolist(), seeds_of(STEP.seed, len(items)), strict=True):
        at, shares = draw(SHAPE, voxels, seed)
        corners = np.stack(np.unravel_index(at, SHAPE), axis=1) - margin
        cut = made.inputs.scans[scan].cubes(corners, own.encoder.cube_size)
        values = own.encoder(torch.from_numpy(cut).double()).flatten(1)
        weights = torch.from_numpy(POOLING.at(at, SHAPE) * shares[:, None])
        moments.append((weights.T @ values).flatten())
    rows = [int(row) for scan in items for row in np.flatnonzero(made.inputs.scan_of == scan)]
    scan_of = [items.tolist().index(scan) for scan in made.inputs.scan_of[rows]]
    beside = torch.from_numpy(made.inputs.covariates[rows].astype(np.float32)).double()
    features = torch.cat([torch.stack(moments)[scan_of], beside], dim=1)
    features = features - features.mean(dim=0)
    outputs = own.head(features / (features.square().mean(dim=0) + 1e-12).sqrt())
    targets = torch.from_numpy(Answers.of(task, made.targets).scaled(made.targets)[rows].astype(np.float32))
    if task is CLASSES:
        return -outputs.log_softmax(dim=1)[range(len(rows)), targets.long()].mean()
    if task is MEAN:
        return (outputs[:, 0] - targets).square().mean()
    missed, levels = targets[:, None] - outputs, torch.tensor(QUANTILE_LEVELS, dtype=torch.float64)
    return torch.where(missed > 0, levels * missed, (levels - 1) * missed).mean()


@pytest.mark.parametrize("task", [MEAN, QUANTILES, CLASSES], ids=lambda task: task.kind)
@pytest.mark.parametrize("chunk", [2048, 50])
def test_a_pooled_loss_and_its_gradient_are_those_of_the_definition(
    task: Task, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "CHUNK", chunk)
    made, items = cohort(8, rows=2, covariates=1, task=task), np.array([6, 1, 0, 3])
    learner = pooled(made, task)
    expected = by_the_formula(learner, made, task, items, 40)
    assert float(learner.loss(items, STEP).detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    exact = torch.autograd.grad(expected, list(learner.weights.parameters()))
    assert apart(gradient(learner, items), list(exact)) < 1e-9


def test_a_pooled_gradient_is_that_of_finite_differences() -> None:
    learner, items = pooled(cohort(6, covariates=2)), np.arange(6)
    directions = random_directions(learner)
    along = sum(float((g * d).sum()) for g, d in zip(gradient(learner, items), directions, strict=True))
    assert slope(learner, items, directions) == pytest.approx(along, rel=1e-6)


def test_features_at_once_are_those_of_two_stages_bit_by_bit_and_gradients_but_for_rounding(
    encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    items, found = np.array([0, 5, 2]), []
    for chunk, times in ((2048, 1), (50, 2)):
        monkeypatch.setattr(encoders, "CHUNK", chunk)
        learner = pooled(cohort(6), double=False)
        encoded.clear()
        loss = learner.loss(items, STEP)
        found.append((float(loss.detach()), torch.autograd.grad(loss, list(learner.weights.parameters()))))
        assert sum(encoded) == times * 3 * 40
    assert found[0][0] == found[1][0]
    assert apart(list(found[1][1]), list(found[0][1])) < 1e-5  # float32


def test_voxels_are_drawn_anew_in_each_step_from_its_seed_alone() -> None:
    learner, items = pooled(cohort(4)), np.arange(4)
    first, again, other = (
        float(learner.loss(items, replace(STEP, seed=seed)).detach()) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_a_batch_whose_features_do_not_vary_has_a_gradient_of_zero() -> None:
    made = cohort_of(np.zeros((4, *SHAPE), np.float32), np.arange(4.0), np.ones((4, 1)))
    learner = pooled(made)
    assert all(bool(g.isfinite().all()) for g in gradient(learner, np.arange(4)))
    alone = gradient(pooled(cohort(4)), np.array([2]))
    assert all(bool(g.isfinite().all()) for g in alone)
    assert not bool(alone[0].any())


def test_two_scans_tell_an_encoder_nothing_and_three_do() -> None:
    """What is standardised among two is 1 and -1, whatever it is: hence batches of three at least."""
    made = cohort(6, rows=2)
    slopes = [float(gradient(pooled(made), np.arange(count))[0].abs().max()) for count in (2, 3)]
    assert slopes[0] < 1e-6 * slopes[1]


def test_standardised_features_have_mean_0_and_variance_1() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = standardised(100 + rows * torch.tensor([1.0, 1e-3, 50.0, 0.0]))
    assert torch.allclose(made.mean(dim=0), torch.zeros(4, dtype=torch.float64), atol=1e-9)
    assert made.square().mean(dim=0).tolist() == pytest.approx([1, 1, 1, 0], rel=1e-5)


CONFIG = TrainingConfig(epochs=5, batch=6, rate=3e-2)


@pytest.mark.parametrize("task", [QUANTILES, CLASSES], ids=lambda task: task.kind)
def test_a_texture_is_learned_from_random_voxels(task: Task) -> None:
    made = cohort(48, task=task)
    learner = PooledLearner(
        EncoderWithHead(
            EncoderConfig((6, 6), 4).network(1, 0, CPU), linear_outputs(8 * 5, task.outputs, CPU)
        ),
        made,
        Answers.of(task, made.targets),
        made.inputs.covariates,
        Randomly(100, POOLING),
        CPU,
    )
    history = train(learner, CONFIG, seed=0, watch=Watch())
    assert history.losses[-1] < 0.7 * history.losses[0]


def recorded(
    learner: PooledLearner | ProjectedLearner, kept: Memory, config: TrainingConfig, step: int | None
) -> History:
    report = Watch().report if step is None else KilledAt(step)
    return train(learner, config, seed=3, watch=Watch(report, kept))


def assert_resumes(
    make: Callable[[], PooledLearner | ProjectedLearner], config: TrainingConfig, steps: int
) -> None:
    """Stopped within any epoch, a training goes on to the same weights, state and history."""
    kept = Memory()
    history = recorded(make(), kept, config, None)
    assert history.steps == steps
    for step in range(1, steps, 2):
        broken = Memory()
        with pytest.raises(Killed):
            recorded(make(), broken, config, step)
        assert recorded(make(), broken, config, None) == history
        assert kept.saved is not None
        assert broken.saved is not None
        assert broken.saved[0].keys() == kept.saved[0].keys()
        for name, array in kept.saved[0].items():
            assert np.array_equal(broken.saved[0][name], array), (step, name)


def test_a_pooled_training_goes_on_to_the_same_bits() -> None:
    made, config = cohort(7, rows=2, covariates=1), TrainingConfig(epochs=2, batch=3, checkpoint_steps=1)
    assert_resumes(lambda: pooled(made, double=False), config, 4)


# Principal features of trains

TRAINS = ProjectionConfig(count=2, anchors=5, fibres=FibreConfig(layout="tt", rank=2))
SCALAR = FibreConfig(layout="qtt", sampling="scalar", rank=3, oversampling=1.0)


@pytest.mark.parametrize(
    "fibres", [FibreConfig(layout="tt", rank=2), replace(SCALAR, rank=2)], ids=["tt", "scalar"]
)
def test_a_training_through_trains_goes_on_to_the_same_bits_within_an_epoch_too(fibres: FibreConfig) -> None:
    made, config = cohort(6), TrainingConfig(epochs=2, batch=3, rate=1e-2, checkpoint_steps=1)
    projection = replace(TRAINS, anchors=3, fibres=fibres, low_rank=0.5, probes=16)
    assert_resumes(lambda: projected(made, projection, double=False), config, 4)


def directions_of(state: dict[str, Array]) -> tuple[Any, Tensor]:
    """A saved basis: anchors and coefficients."""
    basis = restored(state)
    return basis.anchors, basis.coefficients


def restored(state: dict[str, Array]) -> Basis:
    learner = projected(cohort(4), TRAINS)
    learner.restore({name: array.copy() for name, array in state.items()})
    assert learner._basis is not None
    return learner._basis


def test_the_basis_is_made_once_in_an_epoch_and_turned_onto_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, states = cohort(6), []
    learner, loss = projected(made, TRAINS, double=False), ProjectedLearner.loss

    def watched(own: ProjectedLearner, items: Array, step: Step) -> Tensor:
        told = loss(own, items, step)
        states.append({name: array.copy() for name, array in own.state().items()})
        return told

    monkeypatch.setattr(ProjectedLearner, "loss", watched)
    train(learner, TrainingConfig(epochs=3, batch=3, rate=3e-2), seed=0, watch=Watch())
    assert [int(state["epoch"]) for state in states] == [0] * 2 + [1] * 2 + [2] * 2
    for first in (0, 2, 4):
        second = states[first + 1]
        assert all(np.array_equal(array, second[name]) for name, array in states[first].items())
    for old, new in ((0, 2), (2, 4)):
        (before, A), (after, B) = (directions_of(states[at]) for at in (old, new))
        assert len(after.cores[0]) == TRAINS.anchors
        overlap = B.T @ gram(after, before) @ A
        assert torch.allclose(overlap, overlap.T, atol=1e-9)  # Procrustes: symmetric, and
        assert float(torch.linalg.eigvalsh(overlap).min()) > 0  # nothing is turned away
        assert not torch.allclose(overlap, torch.eye(2, dtype=torch.float64), atol=1e-6)


def test_features_are_those_of_the_trains_by_the_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, items = projected(cohort(5), TRAINS), np.array([3, 0, 1])
    learner.loss(items, STEP)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        EncoderWithHead, "forward", lambda own, looked, *rest: seen.append(looked) or looked[:, :1]
    )
    learner.loss(items, STEP)
    assert learner._basis is not None
    for scan, seed, row in zip(items.tolist(), seeds_of(STEP.seed, 3), seen[0], strict=True):
        volume = EncodedVoxels(cohort(5).inputs.scans[scan], learner._encoder, CPU)
        fibres = Fibres.choose(volume, TRAINS.fibres, seed)
        dense = fibres.train(volume.features(fibres.voxels)).full()
        anchors = learner._basis.anchors.full().flatten(1)
        directions = learner._basis.coefficients.T @ anchors
        f = directions @ (dense.flatten() - anchors.mean(dim=0))
        assert torch.allclose(row, f / (learner._basis.energies / 5).sqrt(), rtol=1e-6)


@pytest.mark.parametrize("low_rank", [0.0, 2.0])
def test_a_gradient_through_trains_is_that_of_finite_differences(low_rank: float) -> None:
    """Of an interpolation, for which nothing but the indices is held fixed; with the residual at probes."""
    config = ProjectionConfig(count=2, anchors=5, fibres=SCALAR, low_rank=low_rank, probes=30)
    learner, items = projected(cohort(5), config), np.arange(5)
    directions = random_directions(learner)
    along = sum(float((g * d).sum()) for g, d in zip(gradient(learner, items), directions, strict=True))
    assert slope(learner, items, directions) == pytest.approx(along, rel=1e-5)


def test_the_low_rank_term_is_the_share_of_the_variance_that_trains_miss_at_probes() -> None:
    made, items = cohort(4), np.array([2, 3])
    plain, with_term = (projected(made, replace(TRAINS, low_rank=low, probes=50)) for low in (0.0, 2.0))
    shares = []
    for scan, seed in zip(items.tolist(), seeds_of(STEP.seed, 2), strict=True):
        volume = EncodedVoxels(made.inputs.scans[scan], with_term._encoder, CPU)
        fibres = Fibres.choose(volume, TRAINS.fibres, seed)
        dense = fibres.train(volume.features(fibres.voxels)).full().detach().reshape(-1, 3)
        probes = draw(SHAPE, 50, seed ^ 1)[0]
        E = volume.features(probes).detach()
        missed = (dense[probes] - E).square().sum()
        shares.append(float(missed / (E - E.mean(dim=0)).square().sum()))
    term = float((with_term.loss(items, STEP) - plain.loss(items, STEP)).detach())
    assert term == pytest.approx(2 * np.mean(shares), rel=1e-6)


def missed_share(learner: ProjectedLearner, scans: tuple[Any, ...]) -> float:
    """Of the variance of scans that were not learned from: what trains of the same fibres do not have."""
    shares = []
    for scan in scans:
        volume = EncodedVoxels(scan, learner._encoder, CPU)
        fibres = Fibres.choose(volume, learner._config.fibres, 0)
        T = fibres.train(volume.features(fibres.voxels)).full().reshape(-1, 3)
        E = volume.features(np.arange(int(np.prod(SHAPE))))
        shares.append(float((T - E).square().sum() / (E - E.mean(dim=0)).square().sum()))
    return float(np.mean(shares))


def test_with_the_low_rank_term_trains_miss_less_of_scans_that_are_new() -> None:
    (scans, sizes), noise = smooth_scans(12, 0, SHAPE), np.random.default_rng(0).normal(size=(12, *SHAPE))
    noisy = (scans + 0.3 * noise).astype(np.float32)
    made, new = cohort_of(noisy[:8], sizes[:8]), cohort_of(noisy[8:], sizes[8:]).inputs.scans
    config, missed = ProjectionConfig(2, 5, fibres=FibreConfig(layout="tt", rank=3)), []
    for low_rank in (0.0, 1.0):
        learner = projected(made, replace(config, low_rank=low_rank), double=False)
        train(learner, TrainingConfig(epochs=5, batch=4, rate=3e-2), seed=0, watch=Watch())
        missed.append(missed_share(learner, new))
    assert missed[1] < 0.8 * missed[0]


# Settings, and the head that descended


def test_a_head_that_descended_answers_by_statistics_made_anew() -> None:
    rng, head = np.random.default_rng(0), linear_outputs(3, 1, CPU)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 5.0]]))
    features, asked = rng.normal(7, [1, 10, 0], (40, 3)), rng.normal(7, 2, (4, 3))
    targets = rng.normal(100, 30, 40)
    told = recalibrated(head, features, asked, Answers.of(MEAN, targets), CPU)
    scaled = (asked[:, :2] - features[:, :2].mean(axis=0)) / features[:, :2].std(axis=0)
    assert told[:, 0] == pytest.approx(targets.mean() + targets.std() * (scaled @ [1, -2]))


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        (EncoderConfig, "hidden", ()),
        (EncoderConfig, "hidden", (3,) * 9),
        (EncoderConfig, "hidden", (3, 0)),
        (EncoderConfig, "features", 0),
        (ProjectionConfig, "count", 0),
        (ProjectionConfig, "anchors", 0),
        (ProjectionConfig, "low_rank", -1.0),
        (ProjectionConfig, "low_rank", float("nan")),
        (ProjectionConfig, "probes", 1),
    ],
)
def test_settings_that_make_no_sense_are_named(
    make: Callable[..., object], setting: str, value: object
) -> None:
    with pytest.raises(InvalidConfig) as error:
        make(**{setting: value})
    assert error.value.setting == setting
