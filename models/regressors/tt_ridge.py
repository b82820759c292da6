"""Principal components without an encoder: trains of intensities, their principal axes, ridge regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.linear_model import LinearModel
from models.regressors.settings import recipe_of
from models.regressors.trains import TrainConfig, TrainFeatures
from models.training import Watch
from models.types import Array


@dataclass(frozen=True)
class TtRidge:
    """Principal features of trains (`TrainConfig`) and a linear head."""

    name: ClassVar[str] = "tt_ridge"

    trains: TrainConfig = field(default_factory=TrainConfig)

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> LinearModel[TrainFeatures]:
        """See `Regressor`. Each scan's train is made once."""
        features, known = TrainFeatures.of(
            cohort.inputs.scans, cohort.patients, self.trains, seed=seed, report=watch.report
        )
        return LinearModel.fit(features, cohort, task, seed=seed, watch=watch, known=known)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> LinearModel[TrainFeatures]:
        """See `Regressor`."""
        return LinearModel.from_saved(TrainFeatures.from_saved, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)
