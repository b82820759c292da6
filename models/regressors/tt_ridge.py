"""Principal components without an encoder: trains of intensities, their principal axes, ridge regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.base import Extent
from models.regressors.linear_model import LinearModel
from models.regressors.memory import head_bytes
from models.regressors.readouts import FibreReadout
from models.regressors.settings import recipe_of
from models.regressors.trains import TrainFeaturesConfig, saved_trains
from models.training import Watch
from models.types import Array


@dataclass(frozen=True)
class TtRidge:
    """Principal features of trains (`TrainFeaturesConfig`) and a linear head."""

    name: ClassVar[str] = "tt_ridge"

    trains: TrainFeaturesConfig = field(default_factory=TrainFeaturesConfig)

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> LinearModel[FibreReadout]:
        """See `Regressor`. Each scan's train is made once."""
        readout, known = self.trains.read(cohort, seed=seed, report=watch.report)
        return LinearModel.fit(readout, cohort, task, seed=seed, watch=watch, known=known)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> LinearModel[FibreReadout]:
        """See `Regressor`."""
        return LinearModel.from_saved(saved_trains, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: every scan's train is kept, and a basis of them."""
        return self.trains.training_bytes(extent) + head_bytes(extent.rows, self.trains.count)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: one scan's train."""
        return self.trains.answering_bytes(extent) + head_bytes(extent.rows, self.trains.count)
