"""Volumes of which a part was observed: filled from the pyramid, filled smoothly, and completed by a train.

From the pyramid (`filled`): a cell takes the mean of what was observed in it, and where there is nothing, the
value that is prolonged from the level above. No train, no equation: the baseline.

Smoothly (`smoothly_filled`): of all cubes that agree with what was observed, the one of least bending energy
|Lap X|^2, with the border's voxel repeated beyond a face: a discrete thin plate (Duchon 1977). Its normal
equations are solved by conjugate gradients, level by level of the pyramid, each from the one above.

By a train (`completed`), by expectation and maximisation ("hard impute", Mazumder, Hastie & Tibshirani 2010,
for trains): what was not observed is what the train says there, and the train is that of the cube so filled,
of limited rank; again and again. A train of low rank cannot hold more of a scan than it could of the whole
one, and each further iteration draws the other voxels towards such a train: from a smooth filling the first
one is mostly the best. So `complete` hides a few of the observed voxels, in pieces as large as the gaps, and
takes the rank, the number of iterations and the filling that tell them best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from models.errors import InvalidShape, refuse_non_finite
from models.limits import refuse_outside
from models.putt.factorising import rank_caps, tt_svd_by_gram
from models.putt.morton import MODE, from_morton, levels_of_cube, pooled, pyramid, to_morton
from models.putt.prolongation import prolonged_cube
from models.training import ignore
from models.tt.train import TensorTrain
from models.types import Report

RANKS = tuple(10 << k for k in range(8))
"""Of which `complete` tries the three largest whose trains have few enough numbers."""
NUMBERS_SHARE = 0.4
"""Of the voxels: what such a train has at most."""
HIDDEN_SHARE = 0.05
"""Of the cells with observed voxels, hidden to judge by."""
FEWEST_HIDDEN = 8
SURE = 2.0
"""Standard errors, by which something else than the smooth filling and the largest rank must be better."""
DEPTH_SHARE = 0.8
"""Of the mean depth of the gaps, that hidden voxels must have."""
MOST_ITERATIONS = 4
CG_STEPS = 40
CG_TOLERANCE = 1e-3
"""Of the residual over the first one, in norm."""


@dataclass(frozen=True)
class Iterations:
    """Of every coarse level, and of the finest. Raises InvalidConfig."""

    coarse: int = 5
    finest: int = 1

    def __post_init__(self) -> None:
        refuse_outside(self, coarse=(1, 10**4), finest=(1, 10**4))


@dataclass(frozen=True, eq=False)
class Completion:
    """A whole volume of one that was observed in part.

    `values` is what was observed, and elsewhere what `source` says: "pyramid", "smooth" or "train". `train`
    is that of the volume in the first corner of the smallest cube of side 2^L. `errors` are root mean squares
    at voxels that were observed and hidden, by source; empty where there were too few to hide any.
    """

    values: Float64[Tensor, "z y x"]
    train: TensorTrain
    source: str
    errors: Mapping[str, float]

    @property
    def held_out(self) -> float | None:
        """The root mean square error to expect in the gaps, as far as hidden voxels tell."""
        return self.errors.get(self.source)


def complete(
    values: Float[Tensor, "z y x"],
    observed: Shaped[Tensor, "z y x"],
    *,
    rank: int | None = None,
    seed: int = 0,
    report: Report = ignore,
) -> Completion:
    """Fill what was not observed (`observed` is 0) in the best way, as hidden voxels tell.

    Of any shape; values that were not observed may be anything, NaN too. The train is of `rank`, else of the
    one of `RANKS` that tells most. The same seed hides the same voxels. `report` is called with the ranks
    done, and cancels by raising. Raises InvalidShape for another mask, for one without a voxel and for a rank
    below 1, NonFinite for observed values that are not.
    """
    seen = _seen(values, observed)
    cube, known = _within_cube(torch.where(seen, values, 0).to(torch.float64)), _within_cube(seen)
    ranks = _ranks(levels_of_cube(cube)) if rank is None else (rank,)
    choice = _chosen(cube, known, _hidden(known, _within_cube(~seen), seed), ranks, report)
    start = FILLINGS[choice.filling](cube, known)
    trains = _imputations(start, cube, known, choice.rank)
    train = next(islice(trains, choice.iterations - 1, None))
    told = from_morton(train.full()) if choice.source == "train" else start
    report("completing", len(ranks) + 1, len(ranks) + 1)
    part = tuple(slice(n) for n in values.shape)
    return Completion(torch.where(known, cube, told)[part], train, choice.source, choice.errors)


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


def smoothly_filled(
    values: Float[Tensor, "z y x"], mask: Shaped[Tensor, "z y x"]
) -> Float64[Tensor, "z y x"]:
    """The cube with what was not observed bent as little as what was observed allows. Raises as `filled`."""
    (coarsest, count), *finer = _observed_levels(values, mask, 2)
    found = torch.where(count > 0, coarsest, _mean(coarsest, count))
    for target, count in finer:
        found = _least_bent(torch.where(count > 0, target, prolonged_cube(found)), count == 0)
    return found


FILLINGS = {"pyramid": filled, "smooth": smoothly_filled}


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

    What is imputed into first, at that side, is what `smoothly_filled` gives.
    `max_rank` caps all bonds, or each of the finest train's. `report` is called with the iterations done, and
    cancels by raising. Raises as `filled`.
    """
    iterations = iterations or Iterations()
    levels = _observed_levels(values, mask, start or values.shape[0])
    caps = rank_caps((MODE,) * levels_of_cube(values), max_rank)
    total = iterations.coarse * (len(levels) - 1) + iterations.finest
    done, told = 0, smoothly_filled(*levels[0])
    for number, (target, count) in enumerate(levels, 1):
        told = told if number == 1 else prolonged_cube(told)
        trains = _imputations(told, target, count > 0, caps[: levels_of_cube(target) - 1])
        for _ in range(iterations.finest if number == len(levels) else iterations.coarse):
            report("completing", done, total)
            train = next(trains)
            done += 1
        told = from_morton(train.full())
    report("completing", done, total)
    return train


def _imputations(
    told: Tensor, values: Tensor, known: Tensor, max_rank: int | Sequence[int]
) -> Iterator[TensorTrain]:
    """The train of what is known and of what is told elsewhere, which it tells the next time."""
    while True:
        train = tt_svd_by_gram(to_morton(torch.where(known, values, told)), max_rank=max_rank)[0]
        yield train
        told = from_morton(train.full())


def _least_bent(cube: Tensor, free: Tensor) -> Tensor:
    """The cube whose free voxels make |Lap X|^2 least, from those that it has."""

    def gradient(X: Tensor) -> Tensor:
        return torch.where(free, _laplacian(_laplacian(X)), 0)

    residual = -gradient(cube)
    direction, energy = residual, residual.square().sum()
    enough = CG_TOLERANCE**2 * energy
    for _ in range(CG_STEPS):
        if energy <= enough:
            break
        image = gradient(direction)
        length = energy / (direction * image).sum()
        cube, residual = cube + length * direction, residual - length * image
        before, energy = energy, residual.square().sum()
        direction = residual + energy / before * direction
    return cube


def _laplacian(cube: Tensor) -> Tensor:
    """Second differences along each axis, the border's voxel repeated; a symmetric operator."""
    found = torch.zeros_like(cube)
    for axis in range(cube.ndim):
        steps = cube.diff(dim=axis)
        found.narrow(axis, 0, cube.shape[axis] - 1).add_(steps)
        found.narrow(axis, 1, cube.shape[axis] - 1).sub_(steps)
    return found


@dataclass(frozen=True, eq=False)
class _Choice:
    """How to complete, and how far off each source was at what had been hidden."""

    filling: str
    rank: int
    iterations: int
    source: str
    errors: Mapping[str, float]


def _chosen(cube: Tensor, known: Tensor, hidden: Tensor, ranks: Sequence[int], report: Report) -> _Choice:
    """The way that is nearest at the hidden voxels; without enough of them the smooth one, of most ranks."""
    if int(hidden.sum()) < FEWEST_HIDDEN:
        return _Choice("smooth", ranks[-1], 1, "smooth", {})

    def squares(told: Tensor) -> Tensor:
        return (told - cube)[hidden].square()

    rest = known & ~hidden
    fillings = {name: fill(cube, rest) for name, fill in FILLINGS.items()}
    off = {name: squares(told) for name, told in fillings.items()}
    filling = "pyramid" if _surely_less(off["pyramid"], off["smooth"]) else "smooth"
    *smaller, rank = ranks
    report("completing", 0, len(ranks) + 1)
    off["train"], iterations = _iterated(fillings[filling], cube, rest, rank, squares)
    for done, other in enumerate(reversed(smaller), 1):
        report("completing", done, len(ranks) + 1)
        found, count = _iterated(fillings[filling], cube, rest, other, squares)
        if not _surely_less(found, off["train"]):
            break
        off["train"], rank, iterations = found, other, count
    source = "train" if _surely_less(off["train"], off[filling]) else filling
    return _Choice(
        filling, rank, iterations, source, {name: float(each.mean().sqrt()) for name, each in off.items()}
    )


def _iterated(
    told: Tensor, cube: Tensor, known: Tensor, rank: int, squares: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int]:
    """The squares at the hidden voxels after as many imputations as surely make them less, and how many."""
    least, count = told.new_tensor(()), 0
    for train in islice(_imputations(told, cube, known, rank), MOST_ITERATIONS):
        found = squares(from_morton(train.full()))
        if count and not _surely_less(found, least):
            break
        least, count = found, count + 1
    return least, count


def _surely_less(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are less than their partners, by SURE standard errors of the mean difference."""
    less = other - one
    return bool(less.mean() > SURE * less.std() / math.sqrt(len(less)))


def _hidden(known: Tensor, gaps: Tensor, seed: int) -> Tensor:
    """Some of what is known, in cells of the least size that lie as deep within it as the gaps do.

    Nothing where there is no gap, and where fewer than two cells hold all that is known.
    """
    hidden, side = torch.zeros_like(known), 1
    wanted = _depth(gaps, known)
    while bool(gaps.any()) and 4 * side <= known.shape[0]:
        cells = _some_cells(known, side, seed)
        if cells is None:
            break
        hidden = known & cells
        if _depth(hidden, known & ~hidden) >= DEPTH_SHARE * wanted:
            break
        side *= 2
    return hidden


def _some_cells(known: Tensor, side: int, seed: int) -> Tensor | None:
    """A share of the cells of a side that hold what is known; None where there is one at most."""
    density = known.to(torch.float64)
    while density.shape[0] * side > known.shape[0]:
        density = pooled(density)
    places = (density > 0).flatten().nonzero()[:, 0]
    if len(places) < 2:
        return None
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).to(places.device)
    taken = torch.zeros_like(density, dtype=torch.bool)
    taken.view(-1)[places[order[: math.ceil(HIDDEN_SHARE * len(places))]]] = True
    for axis in range(3):
        taken = taken.repeat_interleave(side, axis)
    return taken


def _depth(voxels: Tensor, known: Tensor) -> float:
    """The mean distance of voxels from what is known: of the axes' distances the largest."""
    reached, depth = known.to(torch.float32)[None], 0.0
    count = max(int(voxels.sum()), 1)
    for _ in range(known.shape[0]):
        missed = int((voxels & (reached[0] == 0)).sum())
        if not missed:
            break
        depth += missed / count
        reached = nn.functional.max_pool3d(reached, 3, stride=1, padding=1)
    return depth


def _ranks(levels: int) -> tuple[int, ...]:
    """To try for a cube of so many levels."""
    most = NUMBERS_SHARE * MODE**levels
    return tuple(rank for rank in RANKS if _numbers(levels, rank) <= most)[-3:] or RANKS[:1]


def _numbers(levels: int, max_rank: int) -> int:
    """Of a train."""
    ranks = (1, *rank_caps((MODE,) * levels, max_rank), 1)
    return sum(left * MODE * right for left, right in pairwise(ranks))


def _within_cube(volume: Tensor) -> Tensor:
    """In the first corner of the smallest cube of side 2^L; zeros beyond."""
    side = max(2, 1 << (max(volume.shape) - 1).bit_length())
    whole = volume.new_zeros((side,) * 3)
    whole[tuple(slice(n) for n in volume.shape)] = volume
    return whole


def _observed_levels(values: Tensor, mask: Tensor, start: int) -> list[tuple[Tensor, Tensor]]:
    """(means, counts) of every level from side `start`."""
    seen = _seen(values, mask)
    known = torch.where(seen, values, 0).to(torch.float64)
    levels = pyramid(known, seen.to(torch.float64), start)
    return [(target, count) for target, count in levels if count is not None]


def _seen(values: Tensor, mask: Tensor) -> Tensor:
    """Where a volume was observed, checked."""
    seen = mask != 0
    if values.ndim != 3 or mask.shape != values.shape or not bool(seen.any()):
        raise InvalidShape(
            f"a mask of shape {tuple(mask.shape)} with {int(seen.sum())} voxels observed, for a volume "
            f"of shape {tuple(values.shape)}: one of the same shape, and one voxel at least, is needed"
        )
    refuse_non_finite(torch.where(seen, values, 0), "observed values")
    return seen


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum()
