"""Ridge regression on a coarse grid of intensities: what the shape and the brightness of things tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch

from models.errors import InvalidConfig
from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.base import Extent
from models.regressors.blocks import BlockMeans
from models.regressors.linear_model import LinearModel
from models.regressors.memory import head_bytes, slab_bytes
from models.regressors.settings import recipe_of
from models.training import Watch
from models.types import Array


@dataclass(frozen=True)
class VoxelRidge:
    """Means of `grid`^3 blocks, and a linear head. Raises InvalidConfig, naming the setting."""

    name: ClassVar[str] = "voxel_ridge"

    grid: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= 64:
            raise InvalidConfig("grid", self.grid, "between 1 and 64")

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> LinearModel[BlockMeans]:
        """See `Regressor`."""
        return LinearModel.fit(BlockMeans(self.grid), cohort, task, seed=seed, watch=watch)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> LinearModel[BlockMeans]:
        """See `Regressor`."""
        return LinearModel.from_saved(lambda _, made: BlockMeans(**made), tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a slab, and means of blocks that grow with `grid`^3."""
        return slab_bytes(extent) + head_bytes(extent.rows, self._features(extent))

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a slab, and the means of one scan's blocks and of all that is asked."""
        return slab_bytes(extent) + head_bytes(extent.rows, self._features(extent))

    def _features(self, extent: Extent) -> int:
        return extent.channels * prod(min(self.grid, size) for size in extent.shape)
