"""The same answer for everybody: what any regressor must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.saved import digest
from models.learning.task import QUANTILE_LEVELS, Task
from models.regressors.base import Extent, Look
from models.regressors.linear_model import refuse_other, refuse_task
from models.regressors.memory import head_bytes
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array, CubeSource

SCHEMA = 1
PRIOR = 0.5
"""Rows that each class is given beside its own (Jeffreys), so that none is called impossible."""


@dataclass(frozen=True)
class Constant:
    """The training's mean, its quantiles at `QUANTILE_LEVELS`, or its classes' shares."""

    name: ClassVar[str] = "constant"

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> ConstantModel:
        """See `Regressor`."""
        return ConstantModel(task, _answer(cohort.targets, task))

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> ConstantModel:
        """See `Regressor`."""
        refuse_other(tensors, manifest, SCHEMA)
        refuse_task(manifest, task)
        if (answer := tensors["answer"]).shape != (task.outputs,):
            raise InvalidShape(f"an answer {answer.shape} for a task of {task.outputs} outputs")
        return ConstantModel(task, answer)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`; there are none."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a few numbers per row."""
        return head_bytes(extent.rows, 1)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a few numbers per row."""
        return head_bytes(extent.rows, 1)


@dataclass(frozen=True, eq=False)
class ConstantModel:
    """An answer (outputs,) to a task."""

    task: Task
    answer: Float64[Array, " outputs"]

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`. No scan is looked at."""
        return np.tile(self.answer, (len(inputs), 1))

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`: there is nothing behind the answer."""
        return Look()

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return {"answer": self.answer}

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        return {
            "schema": SCHEMA,
            "task": self.task.to_json(),
            "parameters": self.answer.size,
            "digest": digest(self.tensors()),
        }


def _answer(targets: Float64[Array, " n"], task: Task) -> Float64[Array, " outputs"]:
    if task.kind == "classes":
        counts = np.bincount(targets.astype(np.int64), minlength=task.outputs) + PRIOR
        return np.asarray(counts / counts.sum())
    return np.quantile(targets, QUANTILE_LEVELS) if task.kind == "quantiles" else targets.mean(keepdims=True)
