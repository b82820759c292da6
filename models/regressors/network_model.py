"""A network that is trained by descent on what is seen of scans: the model of recipes without an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.compression.structure import structure_of
from models.learning.cohort import Cohort, Inputs
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.regressors.base import Look
from models.regressors.linear_model import refuse_other, refuse_task
from models.regressors.neural import (
    Answers,
    LookAt,
    RowLearner,
    RowNetwork,
    Scaling,
    load_weights,
    refuse_covariates,
    weights_of,
)
from models.training import TrainingConfig, Watch, train
from models.types import Array, CubeSource

SCHEMA = 1

Slopes = Callable[[Tensor], Float64[Array, "1 ..."]]
"""Of what is seen of a scan, (1, ...), to how the answer changes with it, in the unit of the target."""


class Sight(Protocol):
    """How a scan is seen."""

    @property
    def device(self) -> torch.device:
        """Where it is seen."""

    def see(self, scan: CubeSource) -> Tensor:
        """What a network takes of a scan, (1, ...). Raises InvalidShape for one unlike the training's."""

    def look(self, scan: CubeSource, slopes: Slopes) -> Look:
        """What is known of a look at a scan, if the answer changes with what is seen as `slopes` says."""

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""


Sees = TypeVar("Sees", bound=Sight)


@dataclass(frozen=True, eq=False)
class NetworkModel(Generic[Sees]):
    """A network of what is seen of scans, beside scaled covariates. A `Model`."""

    sight: Sees
    network: RowNetwork
    answers: Answers
    covariates: Scaling

    def __post_init__(self) -> None:
        self.network.eval()

    @classmethod
    def fit(
        cls,
        sight: Sees,
        network: RowNetwork,
        cohort: Cohort,
        task: Task,
        look: LookAt,
        training: TrainingConfig,
        *,
        seed: int,
        watch: Watch,
    ) -> Self:
        """Train the network on all rows of the cohort; `look` sees its scans, by their numbers."""
        answers = Answers.of(task, cohort.targets)
        covariates = Scaling.of(cohort.inputs.covariates)
        scaled = covariates(cohort.inputs.covariates)
        how = f"{sight.manifest()}{structure_of(network) or ''}"
        learner = RowLearner(network, cohort, answers, scaled, look, sight.device, how)
        train(learner, training, seed=seed, watch=watch)
        return cls(sight, network, answers, covariates)

    @classmethod
    def from_saved(
        cls,
        make: Callable[[int], tuple[Sees, RowNetwork]],
        tensors: Mapping[str, Array],
        manifest: Mapping[str, Any],
        task: Task,
    ) -> Self:
        """What `tensors` and `manifest` gave; `make` takes the number of covariates.

        Raises InvalidShape where they do not belong together, and for another task.
        """
        refuse_other(tensors, manifest, SCHEMA)
        refuse_task(manifest, task)
        covariates = Scaling(**part("covariates", tensors))
        sight, network = make(len(covariates.centre))
        load_weights(network, part("network", tensors), manifest.get("structure"))
        return cls(sight, network, Answers(task, **manifest["answers"]), covariates)

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`. Each row is told alone: what is asked beside it does not change a bit of an answer."""
        refuse_covariates(inputs, len(self.covariates.centre))
        outputs = torch.empty(len(inputs), self.answers.task.outputs)
        beside = self._beside(inputs.covariates)
        with torch.inference_mode():
            for scan in np.unique(inputs.scan_of).tolist():
                features = self.network.features(self.sight.see(inputs.scans[scan]))
                for row in np.flatnonzero(inputs.scan_of == scan).tolist():
                    outputs[row] = self.network.outputs_of(features, beside[row : row + 1])[0]
        return self.answers.from_outputs(outputs)

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`."""
        beside = self._beside(covariates[None])

        def slopes(seen: Tensor) -> Float64[Array, "1 ..."]:
            seen = seen.requires_grad_()
            outputs = self.network.outputs_of(self.network.features(seen), beside)
            (found,) = torch.autograd.grad(self.answers.explained(outputs[0]), seen)
            return np.asarray(found.double().cpu().numpy() * self.answers.deviation)

        return self.sight.look(scan, slopes)

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return {
            **under("network", weights_of(self.network)),
            **self.sight.tensors(),
            **under("covariates", self.covariates.tensors()),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Model`; with the network's structure where it is compressed or has spectral weights."""
        structure = structure_of(self.network)
        return {
            "schema": SCHEMA,
            **self.sight.manifest(),
            "task": self.answers.task.to_json(),
            "answers": self.answers.to_json(),
            "parameters": sum(weights.numel() for weights in self.network.parameters()),
            "digest": digest(self.tensors()),
            **({"structure": structure} if structure else {}),
        }

    def _beside(self, covariates: Float64[Array, "n t"]) -> Float[Tensor, "n t"]:
        return torch.from_numpy(self.covariates(covariates)).float().to(self.sight.device)
