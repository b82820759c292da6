"""One training loop: seeded, resumable to the same bits, with early stopping. It knows no method.

Everything random is drawn from (seed, where the training stands), never from a running state: the order of an
epoch depends on the seed and the epoch alone, and a learner draws what it needs for a step from `Step.seed`.
So a training that goes on from a checkpoint does what it would have done.

RAdam (Liu et al., On the variance of the adaptive learning rate and beyond, ICLR 2020), as in the C-PIC
paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.limits import refuse_outside
from models.types import Array, Int64, Report

LARGEST = 1e6
"""Rate, or norm of a gradient."""
SCHEMA = 2
"""Of checkpoints. 2: they know what was learned from."""


def ignore(phase: str, done: int, total: int | None) -> None:
    """Nobody watches."""


class Checkpoints(Protocol):
    """Where a training's state is kept: the last one saved, whole, or nothing."""

    def save(self, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        """Replace what was saved before, in one step that a crash cannot split."""

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """What was saved last."""

    def part(self, name: str) -> Checkpoints:
        """Another place, for one part of the work (a fold, a stage)."""


@dataclass(frozen=True)
class Watch:
    """Who watches a training: is told how far it has come, and keeps its state, where that is wanted."""

    report: Report = ignore
    checkpoints: Checkpoints | None = None

    def part(self, name: str) -> Watch:
        """For one part of the work."""
        return Watch(self.report, None if self.checkpoints is None else self.checkpoints.part(name))


@dataclass(frozen=True)
class TrainingConfig:
    """How to descend. Raises InvalidConfig, naming the setting.

    `batch` counts items (scans): what is left over of an epoch joins its batches, so that none is smaller,
    unless there are fewer items in all. The rate falls from `rate` to a hundredth of it along half a cosine.
    Gradients are clipped to the norm `clip`. Training ends `patience` epochs after the best validation; None:
    never early.
    """

    epochs: int = 12
    batch: int = 8
    rate: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    patience: int | None = None
    checkpoint_steps: int = 50

    def __post_init__(self) -> None:
        refuse_outside(self, epochs=(1, 10**6), batch=(1, 10**6), checkpoint_steps=(1, 10**6))
        for setting in ("rate", "clip"):
            if not 0 < getattr(self, setting) <= LARGEST:
                raise InvalidConfig(setting, getattr(self, setting), f"above 0, at most {LARGEST:g}")
        if not 0 <= self.weight_decay < 1:
            raise InvalidConfig("weight_decay", self.weight_decay, "from 0 to below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidConfig("betas", self.betas, "two numbers from 0 to below 1")
        if self.patience is not None and self.patience < 1:
            raise InvalidConfig("patience", self.patience, "at least 1, or none")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        return self.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


@dataclass(frozen=True)
class Step:
    """Where a training stands: `number` counts steps from 0. `seed` is this step's own, for whatever it
    draws.
    """

    number: int
    epoch: int
    seed: int


class Learner(Protocol):
    """What learns: some weights, and a loss of some items."""

    @property
    def weights(self) -> nn.Module:
        """All that descends, and its buffers."""

    @property
    def items(self) -> int:
        """How many items an epoch goes through."""

    @property
    def identity(self) -> str:
        """What is learned, from what and how: a checkpoint of another is not gone on from."""

    def loss(self, items: Int64, step: Step) -> Tensor:
        """The loss (a scalar with a graph) of some items, (b,) distinct numbers."""

    def validation(self, epoch: int) -> float | None:
        """How bad the weights are now, on what they do not learn from; None where there is nothing of it."""

    def state(self) -> dict[str, Array]:
        """What the learner carries from step to step beside its weights."""

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""


class HeldOut:
    """A learner that is judged by another's loss: of the same weights, on items that it does not learn from.

    What the judge draws is drawn from `seed`, the same in every epoch.
    """

    def __init__(self, learner: Learner, judge: Learner, seed: int) -> None:
        self._learner, self._judge, self._seed = learner, judge, seed

    @property
    def weights(self) -> nn.Module:
        """The learner's."""
        return self._learner.weights

    @property
    def items(self) -> int:
        """The learner's."""
        return self._learner.items

    @property
    def identity(self) -> str:
        """The learner's and its judge's."""
        return f"{self._learner.identity} judged by {self._judge.identity}"

    def loss(self, items: Int64, step: Step) -> Tensor:
        """The learner's."""
        return self._learner.loss(items, step)

    def validation(self, epoch: int) -> float:
        """The judge's loss of all its items."""
        with torch.no_grad():
            return float(self._judge.loss(np.arange(self._judge.items), Step(0, epoch, self._seed)))

    def state(self) -> dict[str, Array]:
        """The learner's."""
        return self._learner.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """The learner's."""
        self._learner.restore(state)


@dataclass(frozen=True)
class History:
    """A training's course: the mean loss of each epoch and its validation, and which epoch was kept."""

    losses: tuple[float, ...] = ()
    validations: tuple[float | None, ...] = ()
    best_epoch: int | None = None
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "losses": list(self.losses), "validations": list(self.validations)}

    @property
    def best(self) -> float:
        """The smallest validation so far; infinite before there is one."""
        return min((value for value in self.validations if value is not None), default=math.inf)


def train(learner: Learner, config: TrainingConfig, *, seed: int, watch: Watch) -> History:
    """Descend; the learner's weights are then those of the best epoch, or of the last without validation.

    Goes on from the checkpoint, if there is one, to the bits that it would have come to. Raises NonFinite for
    a loss or a validation that is none, naming the step or the epoch, and InvalidShape for a checkpoint of
    another training, naming what differs, and for a learner without items.
    """
    if learner.items < 1:
        raise InvalidShape("there is nothing to learn from: no scan has a row")
    loop = _Loop(learner, config, seed)
    if watch.checkpoints is not None and (saved := watch.checkpoints.load()) is not None:
        loop.restore(*saved)
    while not loop.over:
        watch.report("training", loop.number, loop.steps)
        loop.step()
        if watch.checkpoints is not None and (loop.number % config.checkpoint_steps == 0 or loop.over):
            watch.checkpoints.save(*loop.saved())
    loop.keep_best()
    watch.report("training", loop.steps, loop.steps)
    return loop.history


class _Loop:
    """A training in progress."""

    def __init__(self, learner: Learner, config: TrainingConfig, seed: int) -> None:
        self.learner, self.config, self.seed = learner, config, seed
        self.per_epoch = max(1, learner.items // config.batch)
        self.steps = config.epochs * self.per_epoch
        self.number = 0
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self._sum = 0.0
        self._optimiser = torch.optim.RAdam(
            learner.weights.parameters(),
            lr=config.rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            decoupled_weight_decay=True,
        )

    @property
    def over(self) -> bool:
        """Whether all steps are done, or patience is."""
        patience, best, epochs = self.config.patience, self.history.best_epoch, len(self.history.losses)
        tired = patience is not None and best is not None and epochs - 1 - best >= patience
        return self.number >= self.steps or tired

    def step(self) -> None:
        """One step; at the end of an epoch, its validation."""
        epoch, at = divmod(self.number, self.per_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.learner.items)
        items = np.array_split(order, self.per_epoch)[at]
        drawn = int(np.random.SeedSequence([self.seed, 1, self.number]).generate_state(1, np.uint64)[0] >> 1)
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.rate_at(self.number, self.steps)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self.learner.loss(items, Step(self.number, epoch, drawn))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.learner.weights.parameters(), self.config.clip)
        for what, value in (("the loss", float(loss.detach())), ("its gradient's norm", float(norm))):
            if not math.isfinite(value):
                raise NonFinite(
                    f"{what} of step {self.number} (lower the rate, {self.config.rate:g})", (), value
                )
        self._optimiser.step()
        self._sum += float(loss.detach())
        self.number += 1
        if self.number % self.per_epoch == 0:
            self._end_epoch(epoch)

    def keep_best(self) -> None:
        """Take back the weights of the best epoch."""
        if self.best is not None:
            self.learner.weights.load_state_dict(self.best)

    def saved(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The whole state."""
        arrays = _arrays("weights", self.learner.weights.state_dict()) | _arrays("best", self.best or {})
        state = self._optimiser.state_dict()["state"]
        for index, slots in state.items():
            arrays |= _arrays(f"optimiser.{index}", slots)
        arrays |= {f"learner.{name}": array for name, array in self.learner.state().items()}
        arrays["sum"] = np.array(self._sum)
        return arrays, {**self._kind(), "number": self.number, "history": self.history.to_json()}

    def restore(self, arrays: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        """Go on from `saved`."""
        _refuse_other(manifest, self._kind())
        own, found = (
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for tensors in (self.learner.weights.state_dict(), _tensors("weights", arrays))
        )
        _refuse_other(found, {**dict.fromkeys(found), **own})
        self.learner.weights.load_state_dict(_tensors("weights", arrays))
        self.best = _tensors("best", arrays) or None
        groups = self._optimiser.state_dict()["param_groups"]
        state = {index: _tensors(f"optimiser.{index}", arrays) for index in groups[0]["params"]}
        kept = {index: slots for index, slots in state.items() if slots}
        self._optimiser.load_state_dict({"state": kept, "param_groups": groups})
        prefix = "learner."
        self.learner.restore({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
        self._sum, self.number = float(arrays["sum"]), int(manifest["number"])
        told = manifest["history"]
        self.history = History(
            tuple(told["losses"]), tuple(told["validations"]), told["best_epoch"], told["steps"]
        )

    def _end_epoch(self, epoch: int) -> None:
        value = self.learner.validation(epoch)
        if value is not None and not math.isfinite(value):
            raise NonFinite(f"the validation of epoch {epoch}", (), value)
        better = value is not None and value < self.history.best
        if better:
            self.best = {name: t.detach().clone() for name, t in self.learner.weights.state_dict().items()}
        self.history = History(
            (*self.history.losses, self._sum / self.per_epoch),
            (*self.history.validations, value),
            epoch if better else self.history.best_epoch,
            self.number,
        )
        self._sum = 0.0

    def _kind(self) -> dict[str, Any]:
        """What a checkpoint must agree in."""
        config = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.config).items()}
        whose = {"seed": self.seed, "items": self.learner.items, "learner": self.learner.identity}
        return {"schema": SCHEMA, **whose, **config}


def _refuse_other(found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise InvalidShape for a checkpoint that does not have what this training has, naming what differs."""
    for name, value in own.items():
        if found.get(name) != value:
            raise InvalidShape(
                f"the checkpoint is of another training ({name} {found.get(name)}, not {value}): "
                "remove it to begin anew"
            )


def _arrays(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors by name, as arrays."""
    return {f"{prefix}.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _tensors(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """What `_arrays` gave."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(start)
    }
