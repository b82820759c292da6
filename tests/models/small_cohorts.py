"""Small cohorts of made scans, and places that keep a training's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from model_fields import Array, ArraySource

from models.learning.cohort import Cohort, Inputs


class Memory:
    """Checkpoints in memory; `parts` are those of parts."""

    def __init__(self) -> None:
        self.saved: tuple[dict[str, Array], dict[str, Any]] | None = None
        self.parts: dict[str, Memory] = {}

    def save(self, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        self.saved = {name: tensor.copy() for name, tensor in tensors.items()}, dict(manifest)

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return self.saved

    def part(self, name: str) -> Memory:
        return self.parts.setdefault(name, Memory())


class Killed(Exception):
    pass


class KilledAt:
    """A report that ends the work before a step."""

    def __init__(self, step: int, phase: str = "training") -> None:
        self.step, self.phase = step, phase

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if (phase, done) == (self.phase, self.step):
            raise Killed


def smooth_scans(count: int, seed: int, shape: tuple[int, int, int] = (12, 14, 16)) -> tuple[Array, Array]:
    """Bodies of different sizes and brightness, float32, and their sizes (count,) in 0..1."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    sizes, bright = rng.uniform(size=count), rng.uniform(0.8, 1.2, size=count)
    tilt = rng.uniform(-0.3, 0.3, size=(count, 2))
    scans = [
        b / (1 + np.exp(6 * (z**2 + (y - u) ** 2 + (x - v) ** 2 - 0.3 - 0.6 * size)))
        for size, b, (u, v) in zip(sizes, bright, tilt, strict=True)
    ]
    noise = 0.02 * rng.normal(size=(count, *shape))
    return (np.stack(scans) + noise).astype(np.float32), sizes


def textured_scans(count: int, seed: int, shape: tuple[int, int, int] = (12, 14, 16)) -> tuple[Array, Array]:
    """Noise beside a checkerboard of one voxel in a share (count,) of the slices: nothing in the mean."""
    rng = np.random.default_rng(seed)
    shares = rng.uniform(size=count)
    board = np.where(np.indices(shape).sum(axis=0) % 2, 1.0, -1.0)
    random = rng.choice([-1.0, 1.0], size=(count, *shape))
    inside = rng.permuted(np.tile(np.linspace(0, 1, shape[0]), (count, 1)), axis=1) < shares[:, None]
    return np.where(inside[:, :, None, None], board, random).astype(np.float32), shares


def cohort_of(scans: Array, targets: Array, covariates: Array | None = None) -> Cohort:
    """One row for each scan, one scan for each patient."""
    inputs = Inputs.of([ArraySource(scan) for scan in scans], covariates)
    return Cohort(
        inputs, tuple(f"p{number}" for number in range(len(scans))), np.asarray(targets, np.float64)
    )


def r2(told: Array, targets: Array) -> float:
    """The share of the variance that is told."""
    return float(1 - np.square(told - targets).sum() / np.square(targets - targets.mean()).sum())
