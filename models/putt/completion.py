"""Cubes of which a part was observed: filled from the pyramid, or completed by a train, coarse to fine.

Filling: a cell takes the mean of what was observed in it, and where there is nothing, the value that is
prolonged from the level above.

Completing, by expectation and maximisation ("hard impute", Mazumder, Hastie & Tibshirani 2010, for trains):
what was not observed is what the train says there, and the train is that of the cube so filled, of limited
rank; again and again. From a good filling few iterations are best: more of them fit the observed voxels
better and the others worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from models.errors import InvalidShape, refuse_non_finite
from models.limits import refuse_outside
from models.putt.factorising import rank_caps, tt_svd_by_gram
from models.putt.morton import from_morton, levels_of_cube, pyramid, to_morton
from models.putt.prolongation import prolonged_cube
from models.training import ignore
from models.tt.train import TensorTrain
from models.types import Report


@dataclass(frozen=True)
class Iterations:
    """Of every coarse level, and of the finest. Raises InvalidConfig."""

    coarse: int = 5
    finest: int = 3

    def __post_init__(self) -> None:
        refuse_outside(self, coarse=(1, 10**4), finest=(1, 10**4))


def filled(values: Float[Tensor, "z y x"], mask: Shaped[Tensor, "z y x"]) -> Float64[Tensor, "z y x"]:
    """The cube with what was not observed (`mask` is 0) from the pyramid; the baseline, without a train.

    Raises InvalidShape for another mask and for one without a voxel, NonFinite for observed values that are
    not.
    """
    (coarsest, count), *finer = _observed_levels(values, mask, 2)
    found = torch.where(count > 0, coarsest, _mean(coarsest, count))
    for target, count in finer:
        found = torch.where(count > 0, target, prolonged_cube(found))
    return found


def completed(
    values: Float[Tensor, "z y x"],
    mask: Shaped[Tensor, "z y x"],
    *,
    max_rank: int | Sequence[int],
    start: int | None = None,
    iterations: Iterations | None = None,
    report: Report = ignore,
) -> TensorTrain:
    """The train of the cube by hard imputation, level by level from side `start`, the whole one's by default.

    What is imputed into first, at that side, is what `filled` gives.
    `max_rank` caps all bonds, or each of the finest train's. `report` is called with the iterations done, and
    cancels by raising. Raises as `filled`.
    """
    iterations = iterations or Iterations()
    levels = _observed_levels(values, mask, start or values.shape[0])
    caps = rank_caps((8,) * levels_of_cube(values), max_rank)
    total = iterations.coarse * (len(levels) - 1) + iterations.finest
    done, told = 0, filled(*levels[0])
    for number, (target, count) in enumerate(levels, 1):
        told = told if number == 1 else prolonged_cube(told)
        rank = caps[: levels_of_cube(target) - 1]
        for _ in range(iterations.finest if number == len(levels) else iterations.coarse):
            report("completing", done, total)
            whole = torch.where(count > 0, target, told)
            train = tt_svd_by_gram(to_morton(whole), max_rank=rank)[0]
            told = from_morton(train.full())
            done += 1
    report("completing", done, total)
    return train


def _observed_levels(values: Tensor, mask: Tensor, start: int) -> list[tuple[Tensor, Tensor]]:
    """(means, counts) of every level from side `start`."""
    seen = mask.to(torch.float64)
    if mask.shape != values.shape or not bool((seen > 0).any()):
        raise InvalidShape(
            f"a mask of shape {tuple(mask.shape)} with {int((seen > 0).sum())} voxels observed, for a cube "
            f"of shape {tuple(values.shape)}: one of the same shape, and one voxel at least, is needed"
        )
    known = torch.where(seen > 0, values.to(torch.float64), 0)
    refuse_non_finite(known, "observed values")
    return [(target, count) for target, count in pyramid(known, seen, start) if count is not None]


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum()
