"""What covariates tell without the scan: what a scan must add to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float64

from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.linear import LinearHead
from models.learning.saved import digest
from models.learning.task import Task
from models.regressors.base import Extent, Look
from models.regressors.linear_model import head_of_task, refuse_other
from models.regressors.memory import head_bytes
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array, CubeSource

SCHEMA = 1


@dataclass(frozen=True)
class Tabular:
    """A linear head on the covariates alone. Its penalty is chosen as for features of scans, so that many
    covariates of few patients are a fair reference too.
    """

    name: ClassVar[str] = "tabular"

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> TabularModel:
        """See `Regressor`. Raises InvalidConfig for a cohort without covariates."""
        covariates = cohort.inputs.covariates
        if not covariates.shape[1]:
            raise InvalidConfig(
                "covariates",
                0,
                "at least 1 for the regressor tabular: name columns of the table, or take constant",
            )
        return TabularModel(LinearHead.fit(covariates, cohort.targets, cohort.row_patients, task, seed=seed))

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> TabularModel:
        """See `Regressor`."""
        refuse_other(tensors, manifest, SCHEMA)
        return TabularModel(head_of_task(tensors, manifest["head"], task))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`; there are none."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: the covariates of all rows."""
        return head_bytes(extent.rows, extent.covariates)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: the same."""
        return head_bytes(extent.rows, extent.covariates)


@dataclass(frozen=True, eq=False)
class TabularModel:
    """A head whose features are the covariates."""

    head: LinearHead

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`. No scan is looked at."""
        if inputs.covariates.shape[1] != (trained := len(self.head.weights)):
            raise InvalidShape(f"{inputs.covariates.shape[1]} covariates, the training had {trained}")
        return self.head.predict(inputs.covariates)

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`: no scan stands behind the answer."""
        return Look()

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return self.head.tensors()

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        return {
            "schema": SCHEMA,
            "head": self.head.manifest(),
            "parameters": self.head.parameters,
            "digest": digest(self.tensors()),
        }
