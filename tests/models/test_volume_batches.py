"""Batches of volumes: each is chosen, interpolated and differentiated as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fields import Array, random_train

from models.cpic.cross import Sample, cross
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, random_start
from models.errors import InvalidShape, NonFiniteSample
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.train import TensorTrain

SHAPE, FEATURES = (12, 10, 8), 3
NAMES = (
    *("smooth", "constant", "zero", "smooth", "of rank 1", "one voxel", "noise"),
    *("saturated", "tiny", "huge"),
)
SCALAR = {
    "tt": tt_layout(SHAPE, FEATURES),
    "qtt": qtt_layout(SHAPE, FEATURES),
    "interleaved": qtt_layout(SHAPE, FEATURES, "interleaved"),
}
BLOCK = {
    "block, tt": tt_layout(SHAPE, FEATURES).spatial(),
    "block, qtt": qtt_layout(SHAPE, FEATURES, whole_features=True).spatial(),
}
SIZES = [(5, 5, 2), (8, 4, 2), (6, None, 1)]


def volumes() -> torch.Tensor:
    """The volumes of NAMES, (b, voxels, features)."""
    at = np.indices(SHAPE).reshape(3, -1).T / np.array(SHAPE)
    waves = at @ np.random.default_rng(0).normal(size=(3, FEATURES))
    smooth = 1 / (1.5 + np.sin(2 * waves))
    zero = np.zeros_like(smooth)
    one = zero.copy()
    one[len(one) // 2] = 7
    found = {
        "smooth": smooth,
        "constant": zero + 3.5,
        "zero": zero,
        "of rank 1": np.exp(at.sum(axis=1))[:, None] * np.ones(FEATURES),
        "one voxel": one,
        "noise": np.random.default_rng(1).normal(size=smooth.shape),
        "saturated": 1 / (1 + np.exp(-60 * (waves - 0.4))),
        "tiny": smooth * 1e-200,
        "huge": smooth * 1e200,
    }
    return torch.from_numpy(np.stack([found[name] for name in NAMES]))


def sampling(layout: Layout, dense: torch.Tensor) -> Sample:
    """Volumes (b, voxels, features) as what a layout's keys (b, ...) read; one volume of a batch too."""

    def one(keys: Array, volume: torch.Tensor) -> torch.Tensor:
        z, y, x, feature = layout.entries(keys.ravel()).T
        voxels = (z * SHAPE[1] + y) * SHAPE[2] + x
        if layout.features == 1:
            return volume[voxels].reshape(*keys.shape, FEATURES)
        return volume[voxels, feature].reshape(keys.shape)

    if dense.ndim == 2:
        return lambda keys: one(keys, dense)
    return lambda keys: torch.stack([one(row, volume) for row, volume in zip(keys, dense, strict=True)])


def by_volume(layout: Layout, dense: torch.Tensor, forward: ForwardSet) -> torch.Tensor:
    """The values of a batch's forward set."""
    parts = [forward.keys[a:b] for a, b in zip(forward.first[:-1], forward.first[1:], strict=True)]
    return torch.cat([sampling(layout, volume)(keys) for volume, keys in zip(dense, parts, strict=True)])


def one_by_one(
    layout: Layout, starts: list[IndexSets], rank: int | None, sweeps: int
) -> list[tuple[IndexSets, TensorTrain]]:
    found = []
    for dense, start in zip(volumes(), starts, strict=True):
        sample = sampling(layout, dense)
        sets = cross(sample, layout, start, rank=rank, sweeps=sweeps, seed=3)
        forward = ForwardSet.of(layout, sets)
        found.append((sets, train_of(sample(forward.keys), forward, rank)))
    return found


@pytest.mark.parametrize(("size", "rank", "sweeps"), SIZES)
@pytest.mark.parametrize("name", [*SCALAR, *BLOCK])
def test_a_batch_gives_what_its_volumes_give_one_by_one(
    name: str, size: int, rank: int | None, sweeps: int
) -> None:
    layout, dense = (SCALAR | BLOCK)[name], volumes()
    starts = [random_start(layout, size, seed) for seed in range(len(dense))]
    single = one_by_one(layout, starts, rank, sweeps)
    sets = cross(sampling(layout, dense), layout, IndexSets.batched(starts), rank=rank, sweeps=sweeps, seed=3)
    forward = ForwardSet.of(layout, sets)
    trains = train_of(by_volume(layout, dense, forward), forward, rank)
    assert all(bool(core.isfinite().all()) for core in trains.cores)
    for number, (own_sets, own) in enumerate(single):
        chosen = sets.of(number)
        pairs = zip((*chosen.left, *chosen.right), (*own_sets.left, *own_sets.right), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), NAMES[number]
        scale = max(float(own.full().abs().max()), 1e-300)
        difference = (trains[number].full() / scale - own.full() / scale).abs().max()
        assert difference <= 1e-10, NAMES[number]


@pytest.mark.parametrize("name", ["qtt", "block, qtt"])
def test_the_same_volume_twice_in_a_batch_gives_the_same_train(name: str) -> None:
    layout = (SCALAR | BLOCK)[name]
    dense = volumes()[[0, 6, 0]]
    start = random_start(layout, 5, 0)
    sets = cross(sampling(layout, dense), layout, IndexSets.batched([start] * 3))
    forward = ForwardSet.of(layout, sets)
    trains = train_of(by_volume(layout, dense, forward), forward)
    assert all(np.array_equal(K[0], K[2]) for K in (*sets.left, *sets.right))
    assert torch.allclose(trains[0].full(), trains[2].full(), rtol=1e-12)
    assert not torch.allclose(trains[0].full(), trains[1].full(), rtol=0.1)


def test_constant_and_zero_volumes_are_exact_beside_others() -> None:
    layout, dense = SCALAR["qtt"], volumes()
    start = IndexSets.batched([random_start(layout, 5, seed) for seed in range(len(dense))])
    forward = ForwardSet.of(layout, cross(sampling(layout, dense), layout, start))
    full = train_of(by_volume(layout, dense, forward), forward).full().flatten(1)
    constant, zero = full[NAMES.index("constant")], full[NAMES.index("zero")]
    assert torch.allclose(constant, torch.full_like(constant, 3.5), rtol=1e-13)
    assert not zero.any()


@pytest.mark.parametrize("name", ["qtt", "block, qtt"])
def test_gradients_through_a_batch_are_those_of_its_volumes(name: str) -> None:
    layout, dense = (SCALAR | BLOCK)[name], volumes()[:7]
    start = IndexSets.batched([random_start(layout, 6, seed) for seed in range(len(dense))])
    sets = cross(sampling(layout, dense), layout, start, rank=4)
    probe = random_train((*layout.modes, *((FEATURES,) if layout.features == 1 else ())), 2, 0)
    forward = ForwardSet.of(layout, sets)
    values = by_volume(layout, dense, forward).requires_grad_()
    train_of(values, forward, 4).inner(probe).square().sum().backward()
    assert values.grad is not None
    for number, volume in enumerate(dense):
        own_forward = ForwardSet.of(layout, sets.of(number))
        own = sampling(layout, volume)(own_forward.keys).requires_grad_()
        train_of(own, own_forward, 4).inner(probe).square().backward()
        assert own.grad is not None
        of_batch = values.grad[forward.first[number] : forward.first[number + 1]]
        assert bool(own.grad.isfinite().all())
        assert (of_batch - own.grad).norm() <= 1e-9 * own.grad.norm(), NAMES[number]


def test_the_keys_of_a_batch_are_each_volumes_own_and_counted_so() -> None:
    layout, dense = BLOCK["block, qtt"], volumes()
    start = IndexSets.batched([random_start(layout, 6, seed) for seed in range(len(dense))])
    sets = cross(sampling(layout, dense), layout, start, rank=3)
    forward = ForwardSet.of(layout, sets)
    alone = [ForwardSet.of(layout, sets.of(number)) for number in range(len(dense))]
    assert forward.samples == sum(own.samples for own in alone)
    assert np.array_equal(np.diff(forward.first), [len(own.keys) for own in alone])
    assert np.array_equal(forward.keys, np.concatenate([own.keys for own in alone]))


def test_a_bad_value_in_one_volume_of_a_batch_names_its_voxel() -> None:
    layout, dense = BLOCK["block, tt"], volumes()[:2]
    start = IndexSets.batched([random_start(layout, 4, 0)] * 2)
    voxel = tuple(int(i) for i in layout.entries(start.of(0).block(layout, 0).ravel()[:1])[0, :3])
    dense[1, np.ravel_multi_index(voxel, SHAPE), 2] = torch.inf
    with pytest.raises(NonFiniteSample) as caught:
        cross(sampling(layout, dense), layout, start)
    assert caught.value.voxel == voxel


def test_batches_beyond_the_keys_are_refused() -> None:
    layout = qtt_layout((2**20, 2**20, 2**20), 4)
    one = IndexSets((np.zeros(1, np.int64),) * 61, (np.zeros(1, np.int64),) * 61)
    assert len(ForwardSet.of(layout, one).keys) == 63
    with pytest.raises(InvalidShape, match=r"2 volumes of 4,611,686,018,427,387,904 entries"):
        ForwardSet.of(layout, IndexSets.batched([one, one]))
