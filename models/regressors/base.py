"""What a regressor is: a recipe that makes a model of a cohort. One file per recipe, one line in
`REGRESSORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Float64

from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.training import Watch
from models.types import Array, CubeSource, Int64


@dataclass(frozen=True)
class Saliency:
    """Where a prediction comes from: what each sampled voxel's features moved it by.

    `voxels` (m, 3) in (z, y, x) of the prepared grid, ascending; `weights` (m,) are gradient times feature,
    summed over the voxel's features, in the unit of the target; positive ones push the prediction up.
    `sides` (z, y, x) are those of the box about a voxel that its features are of.
    """

    voxels: Int64
    weights: Float64[Array, " m"]
    sides: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Look:
    """What a model says about its look at one scan, beside the answer.

    `distance` is how far the scan is from those it was trained on, and `distance_percentile` where that
    stands among the training scans (0 to 100; each measured without itself): None for models that look at no
    scan. `certificate` is `Certificate.to_json()` of the approximation that was used, where there is one, and
    the `encoder_bound` of an encoder of bounded weights. `voxels` counts distinct voxels whose features were
    used.
    """

    distance: float | None = None
    distance_percentile: float | None = None
    certificate: dict[str, Any] | None = None
    voxels: int = 0
    saliency: Saliency | None = None


@dataclass(frozen=True)
class Extent:
    """How much there is to look at: prepared scans of `shape` (z, y, x), and rows about them.

    `stored` voxels of a scan are read for one prepared voxel: more than one where scans are made coarser.
    """

    shape: tuple[int, int, int]
    channels: int
    scans: int
    rows: int
    covariates: int
    stored: float = 1.0


class Model(Protocol):
    """A trained regressor. Same scan, same answer, whatever is asked beside it (to 1e-9)."""

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """The answers to all rows; see `Task`. Each scan is looked at once. Raises InvalidShape."""

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """What stands behind the answer to one row."""

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON; `parameters` among it, the number of trained numbers."""


class Regressor(Protocol):
    """A recipe; a frozen dataclass of its settings."""

    name: ClassVar[str]

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> Model:
        """A model of all rows of the cohort. Same cohort, seed and device: same bits, on a CPU; of `resnet3d`
        and its spectral forms with as many threads, the others train with one.

        Raises ModelError: InvalidConfig, naming the setting, InvalidShape, naming the limit.
        """

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> Model:
        """The model that `tensors` and `manifest` were made by. Raises InvalidShape where they do not fit."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The recipe with these settings, as in a manifest. Raises InvalidConfig, naming the setting."""

    def training_bytes(self, extent: Extent) -> int:
        """The most memory that `fit` takes of such a cohort, beside the process and the scans' sources.

        Known before a voxel is read. Raises InvalidShape for scans that the recipe cannot take.
        """

    def answering_bytes(self, extent: Extent) -> int:
        """The same for `predict` and `look` of a model of this recipe, beside the loaded model."""
