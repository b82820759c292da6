"""Encoder and head as in `cpic`, read without cross-approximation: the baseline that C-PIC must face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch

from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.cpic_model import CpicModel, loaded_encoder
from models.regressors.encoder_training import EncoderTraining, train_encoder
from models.regressors.encoders import calibrated
from models.regressors.readouts import VoxelReadout, VoxelReadoutConfig
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array


@dataclass(frozen=True)
class RandomVoxelsRegressor(EncoderTraining):
    """Read at `readout.count` random voxels. Raises InvalidConfig, naming the setting."""

    name: ClassVar[str] = "random_voxels"

    readout: VoxelReadoutConfig = field(default_factory=VoxelReadoutConfig)

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> CpicModel:
        """See `Regressor`."""
        trained = train_encoder(self, cohort, task, seed=seed, device=device, watch=watch)
        encoder = calibrated(trained.encoder, cohort.inputs.scans, seed, device)
        readout = VoxelReadout(self.readout, lambda scan: encoder, encoder.features, seed, device)
        features = []
        for done, scan in enumerate(cohort.inputs.scans):
            watch.report("voxels", done, len(cohort.inputs.scans))
            features.append(readout.see(scan).features())
        return CpicModel.fitted(
            self.encoder, encoder, readout, np.stack(features), cohort, task, trained.histories, seed
        )

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> CpicModel:
        """See `Regressor`."""
        encoder = loaded_encoder(tensors, manifest, device)
        readout = VoxelReadout.from_saved(manifest["readout"], lambda scan: encoder, device)
        return CpicModel.from_saved(encoder, readout, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)
