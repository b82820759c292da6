"""C-PIC, by the recipe that learns; `random_voxels` is the same without cross-approximation.

An encoder is trained (`models.regressors.encoder_training`) and frozen; its features are calibrated, trains,
anchors and statistics are made anew, and a linear head is fitted in closed form to the block of features that
inner cross-validation by patient prefers (`models.regressors.readouts`).

The paper's own form (`Cpic.paper()`) is trained through scalar trains alone, with a sigmoid. It did not learn
from scratch on the cohorts that we know; docs/results.md reports it beside the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from models.cpic.fibres import FibreConfig
from models.learning.cohort import Cohort
from models.learning.saved import part
from models.learning.task import Task
from models.regressors.cpic_model import CpicModel, loaded_encoder
from models.regressors.encoder_training import EncoderTraining, train_encoder
from models.regressors.encoders import EncoderConfig, ProjectionConfig, calibrated
from models.regressors.readouts import PRINCIPAL, FibreReadout, FibreReadoutConfig
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array


@dataclass(frozen=True)
class Cpic(EncoderTraining):
    """Read by fibres, as a tensor train. Raises InvalidConfig, naming the setting."""

    name: ClassVar[str] = "cpic"

    readout: FibreReadoutConfig = field(default_factory=FibreReadoutConfig)

    @classmethod
    def paper(cls) -> Self:
        """As published: a scalar QTT of rank 10, anchors, perceptron, no start by pooled moments."""
        fibres = FibreConfig(layout="qtt", sampling="scalar", rank=10, oversampling=1.0, sweeps=2)
        return cls(
            encoder=EncoderConfig(
                hidden=(5, 15, 25), features=16, negative_slope=0.0, sigmoid=True, intensity=False
            ),
            starts=1,
            steps=0,
            projected_steps=200,
            projection=ProjectionConfig(fibres=fibres),
            perceptron=True,
            readout=FibreReadoutConfig(fibres=fibres, counts=(10,), block=PRINCIPAL, poolings=()),
        )

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> CpicModel:
        """See `Regressor`."""
        trained = train_encoder(self, cohort, task, seed=seed, device=device, watch=watch)
        encoder = calibrated(trained.encoder, cohort.inputs.scans, seed, device)
        readout, features = FibreReadout.of(
            cohort.inputs.scans,
            cohort.patients,
            lambda scan: encoder,
            self.readout,
            seed=seed,
            device=device,
            report=watch.report,
        )
        return CpicModel.fitted(
            self.encoder, encoder, readout, features, cohort, task, trained.histories, seed
        )

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> CpicModel:
        """See `Regressor`."""
        encoder = loaded_encoder(tensors, manifest, device)
        readout = FibreReadout.from_saved(
            part("readout", tensors), manifest["readout"], lambda scan: encoder, device
        )
        return CpicModel.from_saved(encoder, readout, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`; `{"mode": "paper"}` gives the paper's form, whose settings others change."""
        return recipe_of(cls, settings)
