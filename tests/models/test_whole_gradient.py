"""Gradients from the samples, and from the encoder's weights, to the head's answer; indices are fixed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource, body
from torch import Tensor

from models.cpic.cross import cross
from models.cpic.encoder import CpicEncoder
from models.cpic.fit import combinations
from models.cpic.forward_set import ForwardSet
from models.cpic.head import Head
from models.cpic.index_sets import random_start
from models.cpic.interpolate import Combination, interpolate
from models.cpic.moments import Pooling, pooled_moments
from models.cpic.projection import Basis
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.train import TensorTrain, stacked

SIZE = 32


def reciprocal(layout: Layout, keys: Array, theta: Tensor) -> Tensor:
    """1 / (0.1 + theta (x + y + z)) on the unit cube."""
    sums = layout.entries(keys.ravel())[:, :3].sum(axis=1) / (SIZE - 1)
    return (1 / (0.1 + theta * torch.from_numpy(sums))).reshape(keys.shape)


def slope(layout: Layout, forward: ForwardSet, rank: int | None) -> float:
    """d<T, T>/dtheta by autograd, of an interpolation or of a fit with a rank."""
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    values = reciprocal(layout, forward.keys, theta)
    fixed = None if rank is None else combinations(values, forward, rank)
    train = interpolate(values, forward, fixed)
    return float(torch.autograd.grad(train.inner(train), theta)[0])


@pytest.mark.parametrize("rank", [7, 8, 9, 10])
@pytest.mark.parametrize("fit", [False, True])
def test_gradients_on_smooth_data_are_those_of_the_dense_tensor(rank: int, fit: bool) -> None:
    layout = tt_layout((SIZE,) * 3, 1)
    sums = np.add.outer(np.add.outer(*[np.arange(SIZE)] * 2), np.arange(SIZE)) / (SIZE - 1)
    exact = float((-2 * sums / (0.1 + sums) ** 3).sum())

    def sample(keys: Array) -> Tensor:
        return reciprocal(layout, keys, torch.tensor(1.0, dtype=torch.float64))

    for seed in range(3):
        start = random_start(layout, 2 * rank if fit else rank, seed)
        forward = ForwardSet.of(layout, cross(sample, layout, start, rank=rank, sweeps=4, seed=seed))
        assert abs(slope(layout, forward, rank if fit else None) / exact - 1) <= 1e-7


@pytest.mark.parametrize("rank", [6, 8, 10])
def test_gradients_are_those_of_the_formula_with_its_indices(rank: int) -> None:
    """Against differences of the same interpolant: what differentiating costs, whatever the error of T."""
    layout = tt_layout((SIZE,) * 3, 1)

    def sample(keys: Array, theta: float = 1.0) -> Tensor:
        return reciprocal(layout, keys, torch.tensor(theta, dtype=torch.float64))

    forward = ForwardSet.of(layout, cross(sample, layout, random_start(layout, rank, 0)))

    def energy(theta: float) -> float:
        train = interpolate(sample(forward.keys, theta), forward)
        return float(train.inner(train))

    step = 1e-3
    near, far = (energy(1 + k * step) - energy(1 - k * step) for k in (1, 2))
    assert slope(layout, forward, None) == pytest.approx((8 * near - far) / (12 * step), rel=1e-9)


class Chain:
    """Three small volumes through an encoder in float64 to the answers of a head; indices as they first were.

    The basis and the combinations are constants, as they are in a step of training.
    """

    def __init__(self, whole: bool, oversampling: int) -> None:
        shape, features = (7, 6, 5), 2
        self.whole = whole
        self.encoder = CpicEncoder(1, features, 0).double()
        self.weights = list(self.encoder.parameters())
        self.layout = qtt_layout(shape, features, whole_features=whole)
        self.target = self.layout.spatial() if whole else self.layout
        base = body(shape).astype(np.float64)
        noise = np.random.default_rng(0).normal(size=(3, *shape))
        standardised = (base - base.mean()) / base.std() + 0.3 * noise
        self.cubes = [self._cubes(volume) for volume in standardised]
        self.forwards: list[ForwardSet] = []
        self.fixed: list[list[Combination] | None] = []
        with torch.no_grad():
            for number in range(3):
                dense = self.encoder(self.cubes[number]).flatten(1)
                start = random_start(self.target, 2 * oversampling, number)
                sets = cross(lambda keys, E=dense: self._read(E, keys), self.target, start, rank=2, sweeps=2)
                forward = ForwardSet.of(self.target, sets)
                combined = whole or oversampling > 1
                samples = self._read(dense, forward.keys)
                self.forwards.append(forward)
                self.fixed.append(combinations(samples, forward, 2) if combined else None)
            self.basis = Basis.of(self.trains(), 2)
        self.head = Head(2, 0, hidden=(5, 4), dtype=torch.float64)
        self.moment_head = Head(8 * features, 0, hidden=(5, 4), dtype=torch.float64)

    def trains(self) -> TensorTrain:
        return stacked([self._train(number) for number in range(3)])

    def by_projection(self) -> Tensor:
        return self.head(self.basis.features(self.trains(), standardised=True))

    def by_moments(self) -> Tensor:
        moments = [pooled_moments(self._train(number), self.layout, Pooling()) for number in range(3)]
        return self.moment_head(torch.stack(moments).flatten(1))

    def _train(self, number: int) -> TensorTrain:
        forward = self.forwards[number]
        entries = self.target.entries(forward.keys)
        voxels, at = np.unique(self._linear(entries), return_inverse=True)
        encoded = self.encoder(self.cubes[number][voxels]).flatten(1)
        values = encoded[at] if self.whole else encoded[at, entries[:, 3]]
        return interpolate(values, forward, self.fixed[number], rank_tolerance=1e-12)

    def _read(self, dense: Tensor, keys: Array) -> Tensor:
        entries = self.target.entries(keys.ravel())
        rows = dense[self._linear(entries)]
        found = rows if self.whole else rows[torch.arange(len(rows)), entries[:, 3]]
        return found.reshape(*keys.shape, *found.shape[1:])

    def _linear(self, entries: Array) -> Array:
        return np.ravel_multi_index(tuple(entries[:, :3].T), self.layout.shape[:3])

    def _cubes(self, volume: Array) -> Tensor:
        corners = np.indices(volume.shape).reshape(3, -1).T - 4
        return torch.from_numpy(ArraySource(volume, padding=-0.7).cubes(corners, 9))


@pytest.mark.parametrize("answer", [Chain.by_projection, Chain.by_moments])
@pytest.mark.parametrize(("whole", "oversampling"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_gradients_from_the_encoders_weights_to_the_heads_answer(
    answer: Callable[[Chain], Tensor], whole: bool, oversampling: int
) -> None:
    chain = Chain(whole, oversampling)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in chain.weights]
    origin = [weight.detach().clone() for weight in chain.weights]

    def along(step: Tensor) -> Tensor:
        moved = {
            name: start + step[k] * direction
            for k, ((name, _), start, direction) in enumerate(
                zip(chain.encoder.named_parameters(), origin, directions, strict=True)
            )
        }
        encoder, chain.encoder = (
            chain.encoder,
            lambda cubes: torch.func.functional_call(encoder, moved, cubes),
        )
        try:
            return answer(chain)
        finally:
            chain.encoder = encoder

    step = torch.zeros(len(origin), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, step, eps=1e-7, atol=1e-7, rtol=1e-5)
    assert bool((torch.autograd.grad(along(step).square().sum(), step)[0] != 0).all())


@pytest.mark.parametrize("answer", [Chain.by_projection, Chain.by_moments])
def test_a_constant_volume_gives_finite_gradients(answer: Callable[[Chain], Tensor]) -> None:
    chain = Chain(True, 1)
    chain.cubes[1] = torch.zeros_like(chain.cubes[1])
    with torch.no_grad():
        dense = chain.encoder(chain.cubes[1]).flatten(1)
        chain.fixed[1] = combinations(chain._read(dense, chain.forwards[1].keys), chain.forwards[1], 2)
        chain.basis = Basis.of(chain.trains(), 2)
    answer(chain).square().sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in chain.weights)
