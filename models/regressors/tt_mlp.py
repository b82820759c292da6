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
from models.learning.cohort import Cohort
from models.learning.saved import part, under
from models.learning.task import Task
from models.regressors.base import Extent, Look
from models.regressors.memory import head_bytes
from models.regressors.network_model import NetworkModel, Slopes
from models.regressors.neural import RowNetwork, Scaling
from models.regressors.readouts import FibreReadout
from models.regressors.settings import recipe_of
from models.regressors.trains import TrainFeaturesConfig, saved_trains
from models.threads import one_thread
from models.training import TrainingConfig, Watch
from models.types import Array, CubeSource


@dataclass(frozen=True)
class TtMlp:
    """Standardised features, and 100 and 20 hidden units; `batch_norm` as in the paper's brain cohort.

    Raises InvalidConfig, naming the setting.
    """

    name: ClassVar[str] = "tt_mlp"

    trains: TrainFeaturesConfig = field(default_factory=lambda: TrainFeaturesConfig(count=10))
    batch_norm: bool = False
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=60, batch=20, rate=1e-3, weight_decay=1e-3)
    )

    @one_thread()
    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> NetworkModel[TrainSight]:
        """See `Regressor`."""
        readout, features = self.trains.read(cohort, seed=seed, report=watch.report)
        sight = TrainSight(readout, Scaling.of(features), device)
        seen = sight.scaled(features)
        return NetworkModel.fit(
            sight,
            self._network(sight, cohort.inputs.covariates.shape[1], task, seed),
            cohort,
            task,
            lambda scans: seen[torch.from_numpy(scans).to(device)],
            self.training,
            seed=seed,
            watch=watch,
        )

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> NetworkModel[TrainSight]:
        """See `Regressor`."""

        def make(covariates: int) -> tuple[TrainSight, Perceptron]:
            readout = saved_trains(part("trains", tensors), manifest["trains"])
            sight = TrainSight(readout, Scaling(**part("features", tensors)), device)
            return sight, self._network(sight, covariates, task, 0)

        return NetworkModel.from_saved(make, tensors, manifest, task)

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

    def _network(self, sight: TrainSight, covariates: int, task: Task, seed: int) -> Perceptron:
        features = len(sight.scaling.centre)
        head = Head(features, seed, outputs=task.outputs, covariates=covariates, batch_norm=self.batch_norm)
        return Perceptron(head).to(sight.device)


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


@dataclass(frozen=True, eq=False)
class TrainSight:
    """Scans as their trains' principal features, scaled. A `Sight`."""

    readout: FibreReadout
    scaling: Scaling
    device: torch.device

    def see(self, scan: CubeSource) -> Float[Tensor, "1 q"]:
        """See `Sight`."""
        return self.scaled(self.readout(scan)[None])

    def scaled(self, features: Float64[Array, "s q"]) -> Float[Tensor, "s q"]:
        """Principal features as the perceptron takes them."""
        return torch.from_numpy(self.scaling(features)).float().to(self.device)

    def look(self, scan: CubeSource, slopes: Slopes) -> Look:
        """See `Sight`; what the readout knows of it."""
        varies = self.scaling.deviation > 0
        scales = np.where(varies, self.scaling.deviation, np.inf)
        return self.readout.look(scan, lambda features: slopes(self.scaled(features[None]))[0] / scales)

    def tensors(self) -> dict[str, Array]:
        """See `Sight`."""
        return {**under("trains", self.readout.tensors()), **under("features", self.scaling.tensors())}

    def manifest(self) -> dict[str, Any]:
        """See `Sight`."""
        return {"trains": self.readout.manifest()}
