"""Tensors and volumes that tests look at, and that count how they are looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.cpic.index_sets import feasible_ranks
from models.tt.qtt import Layout
from models.tt.train import TensorTrain
from models.types import Size

Array = NDArray[Any]


class FunctionField:
    """A function of (z, y, x, feature) rows as a field over a layout; remembers the keys it was asked for."""

    def __init__(self, layout: Layout, function: Callable[[Array], Array]) -> None:
        self.layout, self.function = layout, function
        self.keys = np.empty(0, np.int64)
        self.samples = 0

    def __call__(self, keys: Array) -> torch.Tensor:
        self.keys = np.union1d(self.keys, keys)
        self.samples += keys.size
        return torch.from_numpy(self.function(self.layout.entries(keys.ravel()))).reshape(keys.shape)


class TrainField:
    """A tensor train as a field over a layout of its own modes."""

    def __init__(self, layout: Layout, train: TensorTrain) -> None:
        self.layout, self.train = layout, train

    def __call__(self, keys: Array) -> torch.Tensor:
        return self.train.at(torch.from_numpy(self.layout.indices(keys.ravel()))).reshape(keys.shape)


class ArraySource:
    """A volume in memory, (z, y, x) or (c, z, y, x), as a source of boxes, counted by sides and origin."""

    def __init__(self, volume: Array, padding: float = 0) -> None:
        self.volume = volume if volume.ndim == 4 else volume[None]
        self.padding = padding
        self.asked: Counter[tuple[int, ...]] = Counter()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.volume.shape[1:]

    @property
    def channels(self) -> int:
        return len(self.volume)

    def cubes(self, origins: Array, size: Size) -> Array:
        box = (size,) * 3 if isinstance(size, int) else size
        self.asked.update((*box, *origin) for origin in origins.tolist())
        around = [(0, 0)] + [(side, side) for side in box]
        padded = np.pad(self.volume, around, constant_values=self.padding)
        windows = np.lib.stride_tricks.sliding_window_view(padded, box, axis=(1, 2, 3))
        z, y, x = (origins + box).T
        return windows[:, z, y, x].swapaxes(0, 1)


def random_train(modes: tuple[int, ...], rank: int, seed: int) -> TensorTrain:
    """Gaussian cores, scaled so that entries are of order one; ranks as far as the bonds carry them."""
    generator = torch.Generator().manual_seed(seed)
    ranks = (1, *feasible_ranks(modes, rank), 1)
    shapes = [(ranks[k], n, ranks[k + 1]) for k, n in enumerate(modes)]
    return TensorTrain(
        tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5 for shape in shapes
        )
    )


def hilbert(size: int) -> Callable[[Array], Array]:
    """1 / (0.1 + z + y + x) on the unit cube: smooth, with rapidly falling singular values."""
    return lambda entries: 1 / (0.1 + entries[:, :3].sum(axis=1) / (size - 1))


def blobs(size: int) -> Callable[[Array], Array]:
    """Six rotated anisotropic Gaussians and a wave."""
    rng = np.random.default_rng(3)
    centres = rng.uniform(0.2, 0.8, (6, 3))
    shapes = [np.linalg.qr(rng.normal(size=(3, 3)))[0] * (2.0, 3.0, 4.0) for _ in centres]

    def value(entries: Array) -> Array:
        at = entries[:, :3] / (size - 1)
        bumps = [np.exp(-np.square((at - c) @ w).sum(axis=1)) for c, w in zip(centres, shapes, strict=True)]
        return np.asarray(sum(bumps) + 0.1 * np.sin(4 * at.sum(axis=1)))

    return value


def body(shape: tuple[int, int, int]) -> Array:
    """A smooth int16 volume with a body and a background."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = 1 / (1 + np.exp(12 * (z**2 + 1.5 * y**2 + x**2 - 0.7)))
    return np.rint(1000 * inside * (1 + 0.4 * np.sin(5 * z + 3 * x) + 0.3 * np.cos(6 * y))).astype(np.int16)
