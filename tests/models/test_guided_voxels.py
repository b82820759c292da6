"""Voxels drawn where scans are rough: without a bias, and the scan is read once."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource

from models.cpic.encoder import Identity
from models.cpic.field import EncodedVoxels
from models.cpic.guided_voxels import Guide, drawn_by
from models.cpic.moments import Pooling
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics
from models.regressors.guides import Guided, guide_of, roughness

SHAPE = (6, 9, 10)
BLOCKS = (2, 3, 3)
POOLING = Pooling("hat", 2)


def some_guide() -> Guide:
    return Guide(SHAPE, 4, np.random.default_rng(0).exponential(size=BLOCKS) ** 2)


def blocks_of(voxels: Array) -> Array:
    z, y, x = (axis // 4 for axis in np.unravel_index(voxels, SHAPE))
    return np.asarray(np.ravel_multi_index((z, y, x), BLOCKS))


@pytest.mark.parametrize("uniform", [0.2, 1.0])
def test_moments_of_guided_voxels_are_unbiased(uniform: float) -> None:
    field = np.random.default_rng(1).normal(1, 1, (*SHAPE, 2)).reshape(-1, 2)
    weights = POOLING.at(np.arange(len(field)), SHAPE)
    exact = (weights.T @ field / len(field)).ravel()
    told = []
    for seed in range(1500):
        drawn = drawn_by(some_guide(), 40, seed, POOLING, uniform=uniform)
        told.append(drawn.moments(torch.from_numpy(field[drawn.voxels])).numpy())
    error = np.abs(np.mean(told, axis=0) - exact) / (np.std(told, axis=0) / np.sqrt(1500))
    assert error.max() < 4


def test_blocks_are_drawn_in_proportion_to_their_weights_and_no_voxel_weighs_much() -> None:
    guide, uniform, counts = some_guide(), 0.25, np.zeros(18)
    once = guide.sizes() / (60 * np.prod(SHAPE) * guide.chances(uniform))
    assert once.max() <= 1 / (60 * uniform)
    for seed in range(300):
        drawn = drawn_by(guide, 60, seed, POOLING, uniform=uniform)
        assert (np.diff(drawn.voxels) > 0).all()
        assert 0 <= drawn.voxels[0] <= drawn.voxels[-1] < np.prod(SHAPE)
        assert len(drawn.voxels) <= 60
        times = drawn.shares / once[blocks_of(drawn.voxels)]
        assert times == pytest.approx(np.round(times))
        assert times.sum() == pytest.approx(60)
        counts += np.bincount(blocks_of(drawn.voxels), weights=times, minlength=18)
    assert counts / counts.sum() == pytest.approx(guide.chances(uniform), abs=0.01)
    assert np.corrcoef(counts, guide.weights.ravel())[0, 1] > 0.95


def test_where_nothing_is_rough_voxels_are_drawn_everywhere() -> None:
    flat = Guide(SHAPE, 4, np.zeros(BLOCKS))
    sizes = flat.sizes()
    assert sizes.sum() == np.prod(SHAPE)
    assert flat.chances(0.1) == pytest.approx(sizes / sizes.sum())
    assert drawn_by(flat, 30, 0, POOLING, uniform=0.1).shares.sum() == pytest.approx(1)


def test_roughness_is_the_deviation_in_each_block() -> None:
    volume = np.random.default_rng(0).normal(size=(2, 40, 9, 10)).astype(np.float32)
    guide = roughness(ArraySource(volume))
    assert guide.weights.shape == (10, 3, 3)
    for z, y, x in np.ndindex(10, 3, 3):
        block = volume[:, 4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert guide.weights[z, y, x] == pytest.approx(block.std(axis=(1, 2, 3)).sum(), rel=1e-5)


def test_a_scan_is_read_for_its_guide_once_and_the_guide_goes_with_the_scan() -> None:
    scan = ArraySource(np.random.default_rng(0).normal(size=SHAPE))
    encoder = Identity(1, IntensityStatistics(-9.0, 9.0, 0.0, 1.0))
    volume, strategy = EncodedVoxels(scan, encoder, torch.device("cpu")), Guided(20, POOLING, 0.5)
    first, again, other = (strategy.choose(volume, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.voxels, again.voxels)
    assert not np.array_equal(first.voxels, other.voxels)
    assert scan.asked.total() == 1
    guide = weakref.ref(guide_of(scan))
    assert guide() is guide_of(scan)
    del volume, scan
    gc.collect()
    assert guide() is None


def test_what_is_no_guide_is_refused() -> None:
    for weights in (np.zeros((2, 3, 4)), np.full(BLOCKS, -1.0), np.full(BLOCKS, np.nan)):
        with pytest.raises(InvalidShape):
            Guide(SHAPE, 4, weights)
    for count, uniform, named in ((0, 0.5, "count"), (5, 0.0, "uniform"), (5, 1.5, "uniform")):
        with pytest.raises(InvalidConfig, match=named):
            drawn_by(some_guide(), count, 0, POOLING, uniform=uniform)
