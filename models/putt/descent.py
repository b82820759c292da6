"""A train of a cube by descent, coarse to fine (Loeschcke et al. 2024), for losses beyond least squares.

The target of a level is the cube's mean pooling; the train of one level, prolonged, is where the next begins.
All entries are made at once, met in the middle: with m = floor(L / 2), A = G_1 ... G_m is (8^m, r_m) and
B = G_{m+1} ... G_L is (r_m, 8^(L-m)); the values are A B, in the order of the target's digits: no step
gathers or permutes. Adam (Kingma & Ba, ICLR 2015), begun anew at every level.

With a mask, the target of a cell is the mean of its observed voxels, and its weight their number. A cell
without any has the target of the level above, prolonged, and a small weight: many steps at the finest level
else fit what was observed, and anything between.

`reference` does as the authors' code does where that differs: voxels drawn with replacement, the prolongation
as it is shipped, the coarse norm given to the prolonged train, and ranks that truncation lost left lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape, NonFinite, refuse_non_finite
from models.limits import refuse_outside
from models.putt.factorising import rank_caps, tt_svd_by_gram
from models.putt.morton import MODE, from_morton, levels_of, levels_of_cube, pyramid, to_morton
from models.putt.prolongation import SHIPPED, balanced, padded_ranks, prolonged, prolonged_cube
from models.training import ignore
from models.tt.train import TensorTrain
from models.types import Report

LOSSES = ("mse", "l1", "huber")
PORTION_VOXELS = 512 * 512
"""Drawn in a step of the reference, at most."""
STEPS_PER_REPORT = 16

Levels = list[tuple[Tensor, Tensor | None]]
"""(target, weights) of each level; no weights where all was observed."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Raises InvalidConfig, naming the setting.

    The train begins at side `start` and is prolonged after the steps `upsample_at`, in ascending order; it
    ends after `steps`. At level k the rate is `rate * decay^k`: it rises linearly over `warm_up` steps, then
    falls exponentially to `last` of itself at the level's end.
    """

    start: int = 8
    upsample_at: tuple[int, ...] = (16, 48, 144)
    steps: int = 512
    rate: float = 8e-3
    decay: float = 0.9
    warm_up: int = 50
    last: float = 0.1

    def __post_init__(self) -> None:
        refuse_outside(self, steps=(1, 10**7), warm_up=(0, 10**6))
        for setting, least, most in (("rate", 0.0, 1e6), ("decay", 0.0, 1.0), ("last", 0.0, 1.0)):
            if not least < getattr(self, setting) <= most:
                raise InvalidConfig(setting, getattr(self, setting), f"above {least:g}, at most {most:g}")
        if any(later <= earlier for earlier, later in pairwise((0, *self.upsample_at, self.steps))):
            raise InvalidConfig("upsample_at", self.upsample_at, f"ascending, from 1 to below {self.steps}")
        if self.start < 2 or self.start & (self.start - 1):
            raise InvalidConfig("start", self.start, "a power of two, and at least 2")

    @classmethod
    def paper(cls, side: int) -> Schedule:
        """The paper's, in three dimensions, for a cube of side 64 to 512.

        Raises InvalidConfig for other sides.
        """
        steps = {64: 512, 128: 1536, 256: 4608, 512: 13824}
        if side not in steps:
            raise InvalidConfig("side", side, f"one of {', '.join(map(str, steps))}")
        return cls(upsample_at=(16, 48, 144, 432, 1296, 3888)[: levels_of(side) - 3], steps=steps[side])

    @classmethod
    def direct(cls, side: int, steps: int, rate: float = 8e-3) -> Schedule:
        """All steps at the full side."""
        return cls(start=side, upsample_at=(), steps=steps, rate=rate)

    @property
    def side(self) -> int:
        """Of the cube that it ends with."""
        return self.start << len(self.upsample_at)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each level."""
        return tuple(after - before for before, after in pairwise((0, *self.upsample_at, self.steps)))

    def rate_at(self, level: int, step: int) -> float:
        """The rate of a level's step, counted from 0."""
        whole, warm = self.rate * self.decay**level, min(self.warm_up, self.lengths[level])
        if step < warm:
            return whole * (step + 1) / warm
        return float(whole * self.last ** ((step - warm + 1) / (self.lengths[level] - warm)))


@dataclass(frozen=True)
class DescentConfig:
    """What descends, and by which loss. Raises InvalidConfig, naming the setting.

    `max_rank` caps all bonds, or each of the finest train's. `huber` is where Huber's loss turns from square
    to linear, as a share of the largest magnitude observed. `noise` pads ranks after a prolongation
    (`padded_ranks`). `prior` is the weight of a cell without an observation over the mean one of those that
    have some; the coarsest level has none. In float32 unless `double`.
    """

    max_rank: int | tuple[int, ...] = 40
    loss: str = "mse"
    huber: float = 0.05
    noise: float = 0.02
    prior: float = 0.1
    double: bool = False
    reference: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidConfig("loss", self.loss, f"one of {', '.join(LOSSES)}")
        for setting in ("huber", "noise"):
            if not 0 < getattr(self, setting) <= 1:
                raise InvalidConfig(setting, getattr(self, setting), "above 0, at most 1")
        if not 0 <= self.prior <= 1:
            raise InvalidConfig("prior", self.prior, "at least 0, at most 1")

    @property
    def dtype(self) -> torch.dtype:
        """Of the cores while they descend."""
        return torch.float64 if self.double else torch.float32


@dataclass(frozen=True, eq=False)
class Descent:
    """A train that descended, and the loss that each level ended with (of values over the largest)."""

    train: TensorTrain
    losses: tuple[float, ...]


def descended(
    values: Float[Tensor, "z y x"],
    schedule: Schedule,
    config: DescentConfig,
    *,
    seed: int,
    mask: Shaped[Tensor, "z y x"] | None = None,
    start: TensorTrain | None = None,
    report: Report = ignore,
) -> Descent:
    """Descend to the train of a cube, where it was observed (`mask` is not 0), on the cube's device.

    From `start`, a train of side `schedule.start`, or from normal cores whose values have variance 1. The
    same seed gives the same bits on a CPU with as many threads. `report` is called with the steps done, and
    cancels by raising. Raises InvalidShape where cube, mask, start and schedule do not fit, NonFinite for
    observed values that are not and for a loss that is not any more, naming the step.
    """
    if 1 << levels_of_cube(values) != schedule.side:
        raise InvalidShape(f"the schedule ends at side {schedule.side}, the cube has {values.shape[0]}")
    seen = _seen(values, mask)
    known = values if seen is None else torch.where(seen > 0, values, 0)
    refuse_non_finite(known, "values")
    scale = float(known.abs().max()) or 1.0
    levels = pyramid(known.to(torch.float64) / scale, seen, schedule.start)
    train = _moved(_first_train(start, scale, levels_of(schedule.start), config, seed), values.device)
    losses, done = [], 0
    if not config.reference:
        levels = _with_prior(levels, config.prior)
    for level, (target, weights) in enumerate(levels):
        own_seed = seed * len(levels) + level
        if level:
            train = _refined(train, config, own_seed)
        descent = _LevelDescent(target, weights, train, config, own_seed)
        for step in range(schedule.lengths[level]):
            if done % STEPS_PER_REPORT == 0:
                report("descending", done, schedule.steps)
                _refuse_runaway(descent.loss, done, schedule.rate)
            descent.step(schedule.rate_at(level, step))
            done += 1
        _refuse_runaway(descent.loss, done, schedule.rate)
        losses.append(float(descent.loss))
        train = descent.train
    report("descending", done, schedule.steps)
    *cores, last = train.cores
    return Descent(TensorTrain((*cores, last * scale)), tuple(losses))


def contracted(cores: Sequence[Float[Tensor, "left n right"]]) -> Float[Tensor, "rows columns"]:
    """All entries, met in the middle: (8^m, 8^(L-m)) in the order of the digits, with a graph."""
    middle = len(cores) // 2
    right = cores[-1].flatten(1)
    for core in cores[-2 : middle - 1 if middle else None : -1]:
        right = (core.flatten(0, 1) @ right).reshape(len(core), -1)
    if not middle:
        return right
    left = cores[0].flatten(0, 1)
    for core in cores[1:middle]:
        left = (left @ core.flatten(1)).reshape(-1, core.shape[-1])
    return left @ right


def random_start(levels: int, max_rank: int | Sequence[int], seed: int) -> TensorTrain:
    """Normal cores of deviation (prod r_b)^(-1 / 2L): entries of variance 1."""
    ranks = (1, *rank_caps((MODE,) * levels, max_rank), 1)
    deviation = math.prod(ranks) ** (-1 / (2 * levels))
    generator = torch.Generator().manual_seed(seed)
    shapes = [(left, MODE, right) for left, right in pairwise(ranks)]
    return TensorTrain(
        tuple(deviation * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    )


class _LevelDescent:
    """Cores that descend to one level's target."""

    def __init__(
        self, target: Tensor, weights: Tensor | None, train: TensorTrain, config: DescentConfig, seed: int
    ) -> None:
        self._config = config
        self._cores = [nn.Parameter(core.to(config.dtype)) for core in train.cores]
        shape = contracted(self._cores).shape
        self._target = to_morton(target).to(config.dtype).reshape(shape)
        self._weights = None
        if weights is not None:
            self._weights = to_morton(weights / weights.sum()).to(config.dtype).reshape(shape)
        self._adam = torch.optim.Adam(self._cores, fused=True)
        self._random = torch.Generator(target.device).manual_seed(seed) if config.reference else None
        self.loss = self._target.new_zeros(())

    @property
    def train(self) -> TensorTrain:
        """As the cores stand."""
        return TensorTrain(tuple(core.detach().to(torch.float64) for core in self._cores))

    def step(self, rate: float) -> None:
        """One step of Adam."""
        self._adam.param_groups[0]["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        loss = self._of(contracted(self._cores))
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self.loss = loss.detach()

    def _of(self, values: Tensor) -> Tensor:
        target, weights = self._target, self._weights
        if self._random is not None:
            count = min(PORTION_VOXELS, target.numel())
            drawn = torch.randint(
                target.numel(), (count,), generator=self._random, device=self._random.device
            )
            values, target = values.flatten()[drawn], target.flatten()[drawn]
            weights = None if weights is None else weights.flatten()[drawn] * (self._target.numel() / count)
        difference = values - target
        match self._config.loss:
            case "l1":
                each = difference.abs()
            case "huber":
                zero, delta = torch.zeros_like(difference), self._config.huber
                each = nn.functional.huber_loss(difference, zero, reduction="none", delta=delta)
            case _:
                each = difference.square()
        return each.mean() if weights is None else (weights * each).sum()


def _seen(values: Tensor, mask: Tensor | None) -> Tensor | None:
    """1.0 where a voxel was observed, 0.0 elsewhere; None where all were."""
    if mask is None:
        return None
    if mask.shape != values.shape or not bool((mask != 0).any()):
        raise InvalidShape(
            f"a mask of shape {tuple(mask.shape)} with {int((mask != 0).sum())} voxels observed, for a cube "
            f"of shape {tuple(values.shape)}: one of the same shape, and one voxel at least, is needed"
        )
    return (mask != 0).to(torch.float64)


def _first_train(
    start: TensorTrain | None, scale: float, levels: int, config: DescentConfig, seed: int
) -> TensorTrain:
    """What descends first, of values over `scale`."""
    if start is None:
        return random_start(levels, _caps(config, levels), seed)
    if start.batch or start.modes != (MODE,) * levels:
        raise InvalidShape(f"the schedule starts with {levels} levels, not with modes {start.modes}")
    *cores, last = start.detach().cores
    return balanced(TensorTrain((*cores, last / scale)))


def _refined(train: TensorTrain, config: DescentConfig, seed: int) -> TensorTrain:
    """The train of the next level."""
    caps = _caps(config, len(train.cores) + 1)
    if config.reference:
        fine = prolonged(train, SHIPPED, max_rank=caps)
        *cores, last = fine.cores
        return balanced(TensorTrain((*cores, last * (train.norm() / fine.norm().clamp(min=1e-300)))))
    whole = to_morton(prolonged_cube(from_morton(train.full())))
    return padded_ranks(tt_svd_by_gram(whole, max_rank=caps)[0], caps, seed=seed, noise=config.noise)


def _with_prior(levels: Levels, prior: float) -> Levels:
    """The levels' targets and weights, where nothing was observed from the level above."""
    found: Levels = []
    for target, weights in levels:
        if weights is None:
            return levels
        seen = weights > 0
        told = prolonged_cube(found[-1][0]) if found else target[seen].mean()
        light = prior * weights[seen].mean() if found else 0.0
        found.append((torch.where(seen, target, told), torch.where(seen, weights, light)))
    return found


def _caps(config: DescentConfig, levels: int) -> int | tuple[int, ...]:
    """Of the bonds of a train with fewer levels than the finest: coarse digits come first."""
    return config.max_rank if isinstance(config.max_rank, int) else config.max_rank[: levels - 1]


def _moved(train: TensorTrain, device: torch.device) -> TensorTrain:
    return TensorTrain(tuple(core.to(device) for core in train.cores))


def _refuse_runaway(loss: Tensor, step: int, rate: float) -> None:
    if not math.isfinite(value := float(loss)):
        raise NonFinite(f"the loss of step {step} (lower the rate, {rate:g})", (), value)
