"""The paper's baseline TT+MLP: principal features of trains without an encoder, and its perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.cpic.head import Head
from models.learning.cohort import Cohort, Inputs
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.regressors.base import Extent, Look
from models.regressors.linear_model import refuse_other, refuse_task
from models.regressors.memory import head_bytes
from models.regressors.neural import (
    Answers,
    RowLearner,
    RowNetwork,
    Scaling,
    load_weights,
    predicted,
    refuse_covariates,
    weights_of,
)
from models.regressors.readouts import FibreReadout
from models.regressors.settings import recipe_of
from models.regressors.trains import TrainConfig, saved_trains
from models.training import TrainingConfig, Watch, train
from models.types import Array, CubeSource

SCHEMA = 1


@dataclass(frozen=True)
class TtMlp:
    """Standardised features, and 100 and 20 hidden units; `batch_norm` as in the paper's brain cohort.

    Raises InvalidConfig, naming the setting.
    """

    name: ClassVar[str] = "tt_mlp"

    trains: TrainConfig = field(default_factory=lambda: TrainConfig(count=10))
    batch_norm: bool = False
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=60, batch=20, rate=1e-3, weight_decay=1e-3)
    )

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> TtMlpModel:
        """See `Regressor`."""
        inputs = cohort.inputs
        readout, features = self.trains.read(cohort, seed=seed, report=watch.report)
        scaling, covariates = Scaling.of(features), Scaling.of(inputs.covariates)
        answers = Answers.of(task, cohort.targets)
        network = self._network(features.shape[1], len(covariates.centre), task, seed, device)
        seen = torch.from_numpy(scaling(features)).float().to(device)
        learner = RowLearner(
            network,
            cohort,
            answers,
            covariates(inputs.covariates),
            lambda scans: seen[torch.from_numpy(scans).to(device)],
            device,
        )
        train(learner, self.training, seed=seed, watch=watch)
        return TtMlpModel(network, readout, scaling, answers, covariates, device)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> TtMlpModel:
        """See `Regressor`."""
        refuse_other(tensors, manifest, SCHEMA)
        refuse_task(manifest, task)
        scaling, covariates = (Scaling(**part(name, tensors)) for name in ("features", "covariates"))
        network = self._network(len(scaling.centre), len(covariates.centre), task, 0, device)
        load_weights(network, part("network", tensors))
        readout = saved_trains(part("trains", tensors), manifest["trains"])
        answers = Answers(task, **manifest["answers"])
        return TtMlpModel(network, readout, scaling, answers, covariates, device)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: every scan's train is kept, and a basis of them; the perceptron is small."""
        return self.trains.training_bytes(extent) + head_bytes(extent.rows, self.trains.count)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: one scan's train."""
        return self.trains.answering_bytes(extent) + head_bytes(extent.rows, self.trains.count)

    def _network(
        self, features: int, covariates: int, task: Task, seed: int, device: torch.device
    ) -> Perceptron:
        head = Head(features, seed, outputs=task.outputs, covariates=covariates, batch_norm=self.batch_norm)
        return Perceptron(head).to(device)


class Perceptron(RowNetwork):
    """The paper's head on the features of scans."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def features(self, seen: Float[Tensor, "b q"]) -> Float[Tensor, "b q"]:
        """As they are."""
        return seen

    def outputs_of(
        self, features: Float[Tensor, "n q"], covariates: Float[Tensor, "n t"]
    ) -> Float[Tensor, "n o"]:
        """Outputs of rows."""
        return self.head(features, covariates if covariates.shape[1] else None)  # type: ignore[no-any-return]

    def seeded(self, seed: int) -> None:
        """The noise on covariates is drawn from here."""
        self.head.set_extra_state(torch.Generator().manual_seed(seed).get_state())


class TtMlpModel:
    """A trained perceptron, and how scans become its features."""

    def __init__(
        self,
        network: Perceptron,
        readout: FibreReadout,
        scaling: Scaling,
        answers: Answers,
        covariates: Scaling,
        device: torch.device,
    ) -> None:
        self._network, self._readout, self._scaling = network.eval(), readout, scaling
        self._answers, self._covariates, self._device = answers, covariates, device

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`."""
        refuse_covariates(inputs, len(self._covariates.centre))
        return predicted(
            self._network,
            self._answers,
            inputs,
            self._covariates(inputs.covariates),
            lambda scans: self._seen(self._readout(inputs.scans[int(scans[0])])),
            self._device,
        )

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`."""
        beside = torch.from_numpy(self._covariates(covariates[None])).float().to(self._device)

        def gradient(features: Float64[Array, " q"]) -> Float64[Array, " q"]:
            seen = self._seen(features).requires_grad_()
            outputs = self._network.outputs_of(seen, beside)
            (slopes,) = torch.autograd.grad(self._explained(outputs[0]), seen)
            varies = self._scaling.deviation > 0
            scales = np.where(varies, self._scaling.deviation, np.inf)
            return np.asarray(slopes[0].double().cpu().numpy() * self._answers.deviation / scales)

        return self._readout.look(scan, gradient)

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return {
            **under("network", weights_of(self._network)),
            **under("trains", self._readout.tensors()),
            **under("features", self._scaling.tensors()),
            **under("covariates", self._covariates.tensors()),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        return {
            "schema": SCHEMA,
            "trains": self._readout.manifest(),
            "task": self._answers.task.to_json(),
            "answers": self._answers.to_json(),
            "parameters": sum(weights.numel() for weights in self._network.parameters()),
            "digest": digest(self.tensors()),
        }

    def _seen(self, features: Float64[Array, " q"]) -> Float[Tensor, "1 q"]:
        return torch.from_numpy(self._scaling(features[None])).float().to(self._device)

    def _explained(self, outputs: Float[Tensor, " o"]) -> Tensor:
        """The number that a saliency explains: the mean, the median, or the most probable class' log-odds."""
        if self._answers.task.kind != "classes":
            return outputs.sort().values[len(outputs) // 2]
        best = int(outputs.argmax())
        others = torch.cat([outputs[:best], outputs[best + 1 :]])
        return outputs[best] - others.logsumexp(dim=0)
