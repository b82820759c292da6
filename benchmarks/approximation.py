"""Our cross-approximation of a probe, as the benchmarks call it, and how far it is from the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.fields import Probe, Remembered, Values
from models.cpic.cross import cross
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, random_start
from models.tt.qtt import Layout
from models.tt.train import TensorTrain
from models.types import Int64


@dataclass(frozen=True, eq=False)
class Approximation:
    """Index sets and the train made from them; `requested` entries were asked for, with repetition."""

    sets: IndexSets
    train: TensorTrain
    requested: int


def approximate(
    probe: Probe,
    rank: int,
    sweeps: int,
    seed: int,
    *,
    oversampling: int = 1,
    block: bool = False,
    start: IndexSets | None = None,
) -> Approximation:
    """Index sets, possibly larger than the rank, or of whole voxels with all features; the train of them.

    They start at random (`seed`), or from earlier sets.
    """
    layout = probe.layout.spatial() if block else probe.layout
    sample = Remembered(probe.voxels if block else probe.keys)
    start = random_start(layout, rank * oversampling, seed) if start is None else start
    sets = cross(sample, layout, start, rank=rank, sweeps=sweeps, seed=seed)
    forward = ForwardSet.of(layout, sets)
    train = train_of(sample(forward.keys), forward, rank)
    return Approximation(sets, train, sample.requested * (probe.layout.features if block else 1))


def where(layout: Layout, rows: Int64, *, block: bool = False) -> Tensor:
    """The multi-indices of (z, y, x, feature) rows in a train of the layout, or of whole voxels in it."""
    if not block:
        return torch.from_numpy(layout.indices(layout.keys_of(rows)))
    spatial = layout.spatial()
    voxels = spatial.indices(spatial.keys_of(rows * (1, 1, 1, 0)))
    return torch.from_numpy(np.concatenate([voxels, rows[:, 3:]], axis=1))


def errors(values: Values, truth: Values, feature: Int64) -> dict[str, float]:
    """Relative errors, not centred and centred per feature."""
    counts = np.maximum(np.bincount(feature), 1)
    mean = (np.bincount(feature, truth) / counts)[feature]
    error = np.linalg.norm(values - truth)
    return {
        "error": float(error / np.linalg.norm(truth)),
        "centred_error": float(error / np.linalg.norm(truth - mean)),
    }
