"""Gradients chunk by chunk: those of the whole graph, with the memory of one chunk."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource, body
from torch import Tensor, nn

from models.cpic.encoder import StandardisedCpic, identity, random_cpic
from models.cpic.encoding import ENCODE_BATCH, POINT_NUMBERS, Batch, batches
from models.cpic.field import EncodedVoxels
from models.cpic.index_batching import index_batched
from models.errors import InvalidConfig, NonFiniteSample
from models.intensities import IntensityStatistics

CPU = torch.device("cpu")
SHAPE = (24, 30, 34)
FIRST = IntensityStatistics(0.0, 2000.0, 300.0, 400.0)
SECOND = IntensityStatistics(0.0, 2000.0, 100.0, 150.0)


def two_volumes(dtype: torch.dtype = torch.float64) -> tuple[StandardisedCpic, list[EncodedVoxels]]:
    """Two scans with statistics of their own, through one network."""
    encoder = random_cpic(1, 4, 0, FIRST, CPU)
    encoder.network.to(dtype)
    encoders = encoder, replace(encoder, statistics=SECOND)
    sources = [ArraySource(body(SHAPE) + 50 * number) for number in range(2)]
    return encoder, [EncodedVoxels(s, e, CPU) for s, e in zip(sources, encoders, strict=True)]


def some_voxels() -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Tubes, a dense part and scattered voxels of the first volume; scattered voxels of the second."""
    grid = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    rng = np.random.default_rng(0)
    scattered = [rng.choice(grid.size, 200, replace=False) for _ in range(2)]
    tubes = [grid[3, :, 7], grid[20, 4], grid[:16, :8, :8].ravel()[::3]]
    return [np.unique(np.concatenate([scattered[0], *tubes])), scattered[1]]


def loss(features: list[Tensor]) -> Tensor:
    """Something that ties all features of all volumes together."""
    mixed = torch.cat([torch.sin(3 * E).cumsum(dim=0) / len(E) for E in features])
    return mixed.square().mean() + mixed.prod(dim=1).sum()


def whole_graph(volumes: list[EncodedVoxels], voxels: list[Any]) -> list[Tensor]:
    """The definition: everything encoded at once, with one graph."""
    parts = list(batches([volume.scan for volume in volumes], voxels, 10**6))
    values = torch.cat([batch.features() for batch in parts]).double()
    order = np.argsort(np.concatenate([batch.rows for batch in parts]))
    return list(torch.split(values[torch.from_numpy(order)], [len(wanted) for wanted in voxels]))


def gradients(encoder: StandardisedCpic, features: list[Tensor]) -> Tensor:
    weights = list(encoder.network.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(features), weights)])


class Alive:
    """Bytes of the tensors that graphs keep, now and at most; tensors that share memory count once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._holders: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Any:
        class Held:
            value = tensor

        held, place = Held(), tensor.untyped_storage().data_ptr()
        if self._holders.setdefault(place, 0) == 0:
            self.now += tensor.untyped_storage().nbytes()
        self._holders[place] += 1
        self.most = max(self.most, self.now)
        weakref.finalize(held, self._drop, place, tensor.untyped_storage().nbytes())
        return held

    def _drop(self, place: int, nbytes: int) -> None:
        self._holders[place] -= 1
        if self._holders[place] == 0:
            self.now -= nbytes


def most_alive(work: Callable[[], object]) -> int:
    alive = Alive()
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda held: held.value):
        work()
    return alive.most


@pytest.mark.parametrize("chunk", [64, 256, 1024])
def test_gradients_are_those_of_the_whole_graph_across_volumes(chunk: int) -> None:
    voxels = some_voxels()
    encoder, volumes = two_volumes()
    expected = gradients(encoder, whole_graph(volumes, voxels))
    found = gradients(encoder, index_batched(volumes, voxels, chunk=chunk))
    assert float((found - expected).norm() / expected.norm()) <= 1e-12


def test_features_are_those_of_inference_bit_by_bit_and_gradients_the_same_twice() -> None:
    voxels = some_voxels()
    encoder, volumes = two_volumes(torch.float32)
    first = index_batched(volumes, voxels, chunk=100)
    _, inference = two_volumes(torch.float32)
    for E, volume, wanted in zip(first, inference, voxels, strict=True):
        assert torch.equal(E, volume.features(wanted))
    again = index_batched(volumes, voxels, chunk=100)
    assert torch.equal(gradients(encoder, first), gradients(encoder, again))


def test_the_graph_of_one_chunk_is_all_that_is_alive() -> None:
    apart = (np.argwhere(np.ones((6, 7, 8))) * 4) @ np.array([30 * 34, 34, 1])
    voxels = [apart, apart + 1]  # 672 points in all, none of which shares a box
    encoder, volumes = two_volumes(torch.float32)

    def alive(chunk: int) -> int:
        return most_alive(lambda: gradients(encoder, index_batched(volumes, voxels, chunk=chunk)))

    few, some, many = alive(32), alive(64), alive(128)
    whole = most_alive(lambda: gradients(encoder, whole_graph(volumes, voxels)))
    print(few, some, many, whole)
    assert some <= 2.2 * few
    assert many <= 2.2 * some
    assert few < whole / 12


def test_known_voxels_are_encoded_again_for_the_gradient_only(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, features = [], Batch.features

    def watched(batch: Batch) -> Tensor:
        encoded.append(len(batch.rows))
        return features(batch)

    monkeypatch.setattr(Batch, "features", watched)
    voxels = some_voxels()
    encoder, volumes = two_volumes(torch.float32)
    E = index_batched(volumes, voxels)
    assert sum(encoded) == len(voxels[0]) + len(voxels[1])
    E = index_batched(volumes, voxels)
    assert sum(encoded) == len(voxels[0]) + len(voxels[1])
    gradients(encoder, E)
    assert sum(encoded) == 2 * (len(voxels[0]) + len(voxels[1]))


@pytest.mark.parametrize("chunk", [400, 10**6])
def test_batches_stay_small_whatever_a_chunk_holds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = Batch.features
    monkeypatch.setattr(Batch, "features", lambda batch: seen.append(batch.inputs.shape) or real(batch))
    encoder, volumes = two_volumes()
    gradients(encoder, index_batched(volumes, some_voxels(), chunk=chunk))
    beyond = encoder.cube_size - 1
    numbers = [n * encoder.work((z - beyond, y - beyond, x - beyond)).numbers for n, _, z, y, x in seen]
    assert max(numbers) <= ENCODE_BATCH * POINT_NUMBERS < sum(numbers)


def test_weights_that_change_before_the_backward_pass_are_refused() -> None:
    encoder, volumes = two_volumes()
    E = index_batched(volumes, some_voxels())
    with torch.no_grad():
        next(encoder.network.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(encoder, E)


def test_what_has_no_weights_has_features_alone() -> None:
    source = ArraySource(body((6, 6, 6)))
    voxels = EncodedVoxels(source, identity(1, 1, 0, FIRST, CPU), CPU)
    (E,) = index_batched([voxels], [np.arange(5)])
    assert not E.requires_grad
    assert torch.equal(E, voxels.features(np.arange(5)))


@pytest.mark.parametrize(
    ("layer", "training", "refused"),
    [
        (nn.BatchNorm3d(4), False, True),
        (nn.InstanceNorm3d(4), False, True),
        (nn.GroupNorm(2, 4), False, True),
        (nn.Dropout3d(0.5), True, True),
        (nn.Dropout(0.5), False, False),
        (nn.Dropout(0.0), True, False),
    ],
)
def test_layers_that_break_exactness_are_named(layer: nn.Module, training: bool, refused: bool) -> None:
    encoder, volumes = two_volumes(torch.float32)
    encoder.network.layers.insert(7, layer.float())
    encoder.network.train(training)
    if refused:
        with pytest.raises(InvalidConfig, match=rf"encoder.layers.7 = '{type(layer).__name__}'"):
            index_batched(volumes, some_voxels())
    else:
        assert len(index_batched(volumes, some_voxels())) == 2


def test_bad_chunks_and_weights_that_are_not_numbers_are_refused() -> None:
    encoder, volumes = two_volumes()
    with pytest.raises(InvalidConfig, match="chunk = 0"):
        index_batched(volumes, some_voxels(), chunk=0)
    with torch.no_grad():
        list(encoder.network.parameters())[-1].fill_(torch.nan)
    with pytest.raises(NonFiniteSample, match="volume 0"):
        index_batched(volumes, some_voxels())
