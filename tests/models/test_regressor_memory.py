"""What memory regressors say that they take: no less than was measured, and not much more."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.cpic.fibres import FibreConfig
from models.intensities import IntensityStatistics
from models.learning.cohort import Cohort, Inputs
from models.learning.preparation import Preparation, PreparationConfig, RawScan
from models.learning.preparation.grid import MOST_READ
from models.learning.task import Task
from models.regressors import REGRESSORS
from models.regressors.base import Extent
from models.regressors.cpic import Cpic
from models.regressors.encoders import EncoderConfig
from models.regressors.memory import slab_bytes
from models.regressors.readouts import FibreReadoutConfig
from models.regressors.resnet import ResNet, sizes_of
from models.regressors.resnet3d import ResNet3d
from models.regressors.voxel_ridge import VoxelRidge
from models.training import Watch
from models.types import Array, Int64, Size

MIB = 1 << 20
SIDES = {side: (side, side, side) for side in (32, 64, 128, 256, 512)}


def extent(shape: tuple[int, int, int], scans: int = 1, channels: int = 1) -> Extent:
    return Extent(shape, channels, scans, scans, 0)


@pytest.mark.parametrize("shape", [(32, 512, 512), SIDES[256], (64, 1024, 1024), SIDES[512]])
def test_a_dense_answer_takes_what_was_measured(shape: tuple[int, int, int]) -> None:
    """`peak_mib` of resnet3d in docs/results.md, `cpic_predict`, where the weights are in it."""
    measured = {
        (32, 512, 512): 1064,
        (256, 256, 256): 1840,
        (64, 1024, 1024): 6331,
        (512, 512, 512): 12_348,
    }
    weights = 4 * sizes_of(shape, 1, 64, 34).weights
    told = (ResNet3d().answering_bytes(extent(shape)) + weights) / MIB
    assert 0.9 * measured[shape] < told < 1.1 * measured[shape]


@pytest.mark.parametrize(("side", "batch", "measured"), [(128, 20, 13_231), (256, 3, 15_571)])
def test_a_dense_training_takes_what_was_measured(side: int, batch: int, measured: int) -> None:
    """`peak_mib` of resnet3d in docs/results.md, `cpic_train`."""
    recipe = replace(ResNet3d(), training=replace(ResNet3d().training, batch=batch))
    told = recipe.training_bytes(extent(SIDES[side], batch)) / MIB
    assert measured < told < 1.15 * measured


@pytest.mark.parametrize(("channels", "width", "depth"), [(1, 2, 34), (3, 4, 10), (2, 1, 18)])
def test_a_dense_networks_weights_are_counted_without_making_it(
    channels: int, width: int, depth: int
) -> None:
    network = ResNet(channels, 1, 0, width=width, depth=depth)
    inner = sum(weights.numel() for weights in network.parameters())
    last = sum(weights.numel() for weights in network.outputs.parameters())
    assert sizes_of((8, 8, 8), channels, width, depth).weights == inner - last


def test_what_a_dense_network_gives_is_counted_without_making_it() -> None:
    network, given = ResNet(2, 1, 0, width=3, depth=18), list[int]()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda _, __, out: given.append(out.numel()))
    network.features(torch.zeros(1, 2, 9, 21, 34))
    own = sizes_of((9, 21, 34), 2, 3, 18)
    assert (own.stem, own.convolutions) == (given[0], sum(given))


def test_dense_steps_grow_with_batches_and_scans() -> None:
    def told(shape: tuple[int, int, int], scans: int) -> int:
        return ResNet3d().training_bytes(extent(shape, scans))

    assert told(SIDES[256], 8) > 7 * told(SIDES[128], 8) - (8 << 30)
    assert told(SIDES[128], 15) > 1.5 * told(SIDES[128], 8)  # one batch of all 15
    assert told(SIDES[128], 16) < told(SIDES[128], 15)  # two of 8


@pytest.mark.parametrize("name", [name for name in REGRESSORS if not name.startswith("resnet3d")])
def test_all_others_take_little_at_any_size(name: str) -> None:
    recipe = REGRESSORS[name].from_settings({})
    for shape in SIDES.values():
        assert recipe.answering_bytes(extent(shape)) <= 400 * MIB
        assert recipe.training_bytes(extent(shape, 100)) <= 500 * MIB
    large = extent(SIDES[512], 100)
    assert recipe.answering_bytes(replace(large, scans=1, rows=1)) <= recipe.training_bytes(large)


def test_settings_that_take_more_say_so() -> None:
    large = extent(SIDES[512], 1000)
    wide = Cpic(encoder=EncoderConfig(hidden=(64, 128), features=64))
    ranks = Cpic(readout=FibreReadoutConfig(fibres=FibreConfig(layout="tt", rank=60)))
    for recipe in (wide, ranks, replace(Cpic(), projected_steps=5)):
        assert recipe.training_bytes(large) > 1.4 * Cpic().training_bytes(large)
    overview = Cpic(readout=FibreReadoutConfig(overview=64))
    assert overview.training_bytes(large) > Cpic().training_bytes(large) + 1000 * 64**3 * 8
    assert overview.answering_bytes(large) > Cpic().answering_bytes(large) + 512**2 * 8
    fine = VoxelRidge(grid=64)
    assert fine.training_bytes(large) > 1000 * 64**3 * 8
    assert REGRESSORS["tabular"]().training_bytes(replace(large, covariates=50)) > 0
    trains = REGRESSORS["tt_ridge"]()
    assert trains.training_bytes(large) > 2 * trains.training_bytes(replace(large, scans=100, rows=100))


class Sliced:
    """A volume in memory that takes nothing itself, but for what it gives."""

    channels = 1

    def __init__(self, volume: Array) -> None:
        self.volume, self.shape = volume, volume.shape

    def cubes(self, origins: Int64, size: Size) -> Array:
        ((z, y, x),), (Z, Y, X) = origins.tolist(), size  # type: ignore[misc]
        return self.volume[None, None, z : z + Z, y : y + Y, x : x + X].copy()


@pytest.mark.parametrize("grid", ["pad", "resample"])
@pytest.mark.parametrize("rows", [4, 60])
def test_a_ridge_on_blocks_holds_no_more_than_it_says(rows: int, grid: str) -> None:
    affine = np.diag([-1.0, 1, 1, 1])
    volume = np.random.default_rng(0).normal(size=(64, 96, 80)).astype(np.float32)
    spacing = (2.0, 2.0, 2.0) if grid == "resample" else None
    statistics = IntensityStatistics(float(volume.min()), float(volume.max()), 0.0, 1.0)
    raw = RawScan(Sliced(volume), statistics, (1, 1, 1), affine)
    preparation = Preparation.fit(PreparationConfig(intensity="standard", grid=grid, spacing=spacing), [raw])
    scans = tuple(preparation.apply(raw, 0) for _ in range(rows))
    targets = np.random.default_rng(1).normal(size=rows)
    inputs = Inputs(scans, np.arange(rows), np.zeros((rows, 0)))
    cohort = Cohort(inputs, tuple(f"p{number}" for number in range(rows)), targets)
    recipe = VoxelRidge()
    tracemalloc.start()
    try:
        recipe.fit(cohort, Task(), seed=0, device=torch.device("cpu"), watch=Watch())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    stored = preparation.stored_voxels(raw)
    told = recipe.training_bytes(replace(extent(preparation.shape, rows), stored=stored))
    assert told / 5 < peak < told


def test_scans_that_are_made_much_coarser_are_read_in_parts() -> None:
    plain = extent((64, 64, 64), 10)
    told = [slab_bytes(replace(plain, stored=stored)) for stored in (1.0, 8.0, 4096.0, 1e5)]
    assert told == sorted(told)
    assert told[1] == 9 * told[0]
    assert told[3] < told[0] + 8 * 4 * (MOST_READ + 2e5)
