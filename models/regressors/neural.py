"""What networks that are trained by descent share: scaled numbers, rows of scans, answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from models.compression.structure import fill_, taken_apart
from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.losses import answers, losses
from models.learning.principal import deviations
from models.learning.saved import digest
from models.learning.task import Task
from models.sttp.parametrizations import regularised
from models.sttp.spectrum import d_optimal
from models.training import Step
from models.types import Array, Int64

EXTRA_STATE = "_extra_state"
"""How torch ends the names of what modules carry beside their weights."""

LookAt = Callable[[Int64], Tensor]
"""Numbers of scans (b,) to what a network takes of them, (b, ...)."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Numbers to mean 0 and deviation 1, column by column; columns that were constant become 0."""

    centre: Float64[Array, " t"]
    deviation: Float64[Array, " t"]

    @classmethod
    def of(cls, values: Float64[Array, "n t"]) -> Self:
        """By these rows; a deviation that is rounding error is none."""
        return cls(values.mean(axis=0), deviations(values))

    def __call__(self, values: Float64[Array, "m t"]) -> Float64[Array, "m t"]:
        """The rows, scaled."""
        varies = self.deviation > 0
        return np.where(varies, (values - self.centre) / np.where(varies, self.deviation, 1.0), 0.0)

    def tensors(self) -> dict[str, Array]:
        """As a model saves it."""
        return {"centre": self.centre, "deviation": self.deviation}


@dataclass(frozen=True)
class Answers:
    """Between a network's outputs and a task's answers: numbers are learned in deviations from their mean."""

    task: Task
    centre: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, task: Task, targets: Float64[Array, " n"]) -> Self:
        """By these targets."""
        if task.kind == "classes":
            return cls(task)
        return cls(task, float(targets.mean()), float(targets.std()) or 1.0)

    def scaled(self, targets: Float64[Array, " n"]) -> Float64[Array, " n"]:
        """Targets as they are learned."""
        return (targets - self.centre) / self.deviation

    def from_outputs(self, outputs: Float[Tensor, "m o"]) -> Float64[Array, "m o"]:
        """The task's answers."""
        told = answers(outputs.detach().double(), self.task).cpu().numpy()
        return np.asarray(told * self.deviation + self.centre)

    def explained(self, outputs: Float[Tensor, " o"]) -> Tensor:
        """The number that a saliency explains: the mean, the median, or the most probable class' log-odds."""
        if self.task.kind != "classes":
            return outputs.sort().values[len(outputs) // 2]
        best = int(outputs.argmax())
        others = torch.cat([outputs[:best], outputs[best + 1 :]])
        return outputs[best] - others.logsumexp(dim=0)

    def to_json(self) -> dict[str, float]:
        """As plain JSON."""
        return {"centre": self.centre, "deviation": self.deviation}


class RowNetwork(nn.Module):
    """A network of what is seen of scans (b, ...), and of rows of them with covariates (n, t)."""

    def features(self, seen: Tensor) -> Float[Tensor, "b f"]:
        """Of scans."""
        raise NotImplementedError

    def outputs_of(
        self, features: Float[Tensor, "n f"], covariates: Float[Tensor, "n t"]
    ) -> Float[Tensor, "n o"]:
        """Outputs of rows."""
        raise NotImplementedError

    def forward(
        self, seen: Tensor, covariates: Float[Tensor, "n t"], scan_of: Tensor
    ) -> Float[Tensor, "n o"]:
        """Outputs of rows; row i is of the scan `scan_of[i]`."""
        return self.outputs_of(self.features(seen)[scan_of], covariates)

    def seeded(self, seed: int) -> None:
        """Draw what a step draws from this seed; most draw nothing."""

    def penalty(self) -> Tensor | float:
        """What joins the loss: of regularised spectra the D-optimal penalty, with most there is none."""
        spectra = regularised(self)
        return d_optimal(spectra) if spectra else 0.0


class RowLearner:
    """A network, by the rows of the scans of a batch: each scan is looked at once per step.

    An item is a scan that has rows: `scans` (s,) are their numbers in the cohort. `how` says how scans are
    looked at: a checkpoint of another way is refused.
    """

    def __init__(
        self,
        network: RowNetwork,
        cohort: Cohort,
        answers: Answers,
        covariates: Float64[Array, "n t"],
        look: LookAt,
        device: torch.device,
        how: str = "",
    ) -> None:
        self._network, self._task, self._look, self._device = network, answers.task, look, device
        scan_of = cohort.inputs.scan_of
        self.scans = np.unique(scan_of)
        self._rows = [np.flatnonzero(scan_of == scan) for scan in self.scans]
        self._targets = torch.from_numpy(answers.scaled(cohort.targets)).float().to(device)
        self._covariates = torch.from_numpy(covariates).float().to(device)
        self._how = f"{network!r}\n{answers.task}\n{how}\n{[scan.shape for scan in cohort.inputs.scans]}"
        self._learned = {"scan_of": scan_of, "targets": cohort.targets, "covariates": covariates}

    @property
    def weights(self) -> nn.Module:
        """The network."""
        return self._network

    @property
    def items(self) -> int:
        """Scans."""
        return len(self.scans)

    @property
    def identity(self) -> str:
        """A digest of the network's layers, the table, the scans' shapes, and how they are looked at."""
        seen = hashlib.sha256(self._how.encode())
        seen.update(digest(self._learned).encode())
        return seen.hexdigest()[:16]

    def loss(self, items: Int64, step: Step) -> Tensor:
        """Of all rows of some scans."""
        self._network.train()
        self._network.seeded(step.seed)
        own = [self._rows[item] for item in items.tolist()]
        rows = torch.from_numpy(np.concatenate(own)).to(self._device)
        scan_of = torch.from_numpy(np.repeat(np.arange(len(own)), [len(each) for each in own]))
        outputs = self._network(
            self._look(self.scans[items]), self._covariates[rows], scan_of.to(self._device)
        )
        return losses(outputs, self._targets[rows], self._task).mean() + self._network.penalty()

    def validation(self, epoch: int) -> float | None:
        """There is none: all rows are learned from."""
        return None

    def state(self) -> dict[str, Array]:
        """Nothing: what is drawn depends on the step alone."""
        return {}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Nothing."""


def weights_of(network: nn.Module) -> dict[str, Array]:
    """A network's weights and buffers, by name; of factorised layers and spectral weights, their factors."""
    tensors, _ = taken_apart(network)
    return {name: tensor.numpy() for name, tensor in tensors.items() if not name.endswith(EXTRA_STATE)}


def load_weights(
    network: nn.Module, tensors: Mapping[str, Array], structure: Mapping[str, Any] | None = None
) -> None:
    """Put into a network what `weights_of` gave; of a compressed one with its `structure_of`.

    Raises InvalidShape for others, naming one.
    """
    own: dict[str, Any] = network.state_dict()
    if structure:
        kept = {name: state for name, state in own.items() if name.endswith(EXTRA_STATE)}
        fill_(network, {name: torch.from_numpy(np.array(t)) for name, t in tensors.items()} | kept, structure)
        return
    for name, tensor in own.items():
        if name.endswith(EXTRA_STATE):
            continue
        if name not in tensors or tensors[name].shape != tuple(tensor.shape):
            found = tensors[name].shape if name in tensors else "missing"
            raise InvalidShape(f"the weights {name} are {found}, not {tuple(tensor.shape)}")
        own[name] = torch.from_numpy(np.array(tensors[name]))
    network.load_state_dict(own)


def refuse_covariates(inputs: Inputs, count: int) -> None:
    """Raise InvalidShape for another number of covariates than the training's."""
    if inputs.covariates.shape[1] != count:
        raise InvalidShape(f"{inputs.covariates.shape[1]} covariates, the training had {count}")
