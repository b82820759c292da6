"""The dense baseline: a 3-D ResNet-34 that is trained on whole scans (`resnet`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort
from models.learning.task import Task
from models.regressors.base import Extent, Look
from models.regressors.dense import whole
from models.regressors.memory import FLOAT32, scan_bytes, slab_bytes
from models.regressors.network_model import NetworkModel, Slopes
from models.regressors.resnet import DEPTHS, ResNet, Sizes, least_places, sizes_of
from models.regressors.settings import recipe_of
from models.training import TrainingConfig, Watch
from models.types import Array, CubeSource, Int64

KEEP_BYTES = 1 << 30
"""Whole scans are kept from epoch to epoch up to this; the others are read again."""
KEPT_OF_A_LAYER = 2
"""What a convolution gives, and what its normalisation makes of that, are kept for the step back."""
POOLED = 3
"""A maximum in float32, and where it was found in int64."""
STEP_COPIES, CHECKPOINT_COPIES = 5, 16
"""Of the weights: with gradients, two moments and the model of the fold before; and while a file of weights
and moments is made.
"""


@dataclass(frozen=True)
class ResNet3d:
    """A residual network of `depth` layers, `width` channels in its first stage, trained from scratch.

    The learning rate and the decay of weights are those that residual networks have in the literature, for
    RAdam; statistics of normalisation are taken anew at the end. Raises InvalidConfig, naming the setting.
    """

    name: ClassVar[str] = "resnet3d"

    width: int = 64
    depth: int = 34
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=30, batch=8, rate=1e-3, weight_decay=1e-3)
    )

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise InvalidConfig("depth", self.depth, f"one of {', '.join(map(str, DEPTHS))}")
        if not 1 <= self.width <= 1024:
            raise InvalidConfig("width", self.width, "between 1 and 1024")

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> NetworkModel[WholeSight]:
        """See `Regressor`. Raises InvalidShape too where a batch leaves nothing to normalise by."""
        scans, told = cohort.inputs.scans, np.unique(cohort.inputs.scan_of)
        smallest = min(self.training.batch, len(told))
        if smallest * least_places(scans[0].shape) < 2:
            raise InvalidShape(
                f"batch normalisation needs two values: scans of {scans[0].shape} shrink to one place, and "
                f"batches have {smallest} scan: give larger scans, or batches and cohorts of two or more"
            )
        sight, kept = WholeSight(scans[0].shape, scans[0].channels, device), _Kept(scans, device)
        network = self._network(sight, cohort.inputs.covariates.shape[1], task, seed)
        model = NetworkModel.fit(sight, network, cohort, task, kept, self.training, seed=seed, watch=watch)
        network.settle(map(kept, np.array_split(told, max(1, len(told) // self.training.batch))))
        return model

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> NetworkModel[WholeSight]:
        """See `Regressor`."""

        def make(covariates: int) -> tuple[WholeSight, ResNet]:
            z, y, x = manifest["shape"]
            sight = WholeSight((z, y, x), manifest["channels"], device)
            return sight, self._network(sight, covariates, task, 0)

        return NetworkModel.from_saved(make, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a step keeps what every layer gives of every scan of a batch."""
        own, batch = self._sizes(extent), self._batch(extent)
        step = FLOAT32 * (KEPT_OF_A_LAYER * own.convolutions + POOLED * own.maximum) + 2 * scan_bytes(extent)
        kept = slab_bytes(extent) + min(KEEP_BYTES, extent.scans * scan_bytes(extent))
        weights = FLOAT32 * own.weights
        return kept + max(CHECKPOINT_COPIES * weights, STEP_COPIES * weights + batch * step)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a whole scan, and what the first layer gives of it, half as many places."""
        own, one = self._sizes(extent), scan_bytes(extent)
        return one + max(slab_bytes(extent), one + FLOAT32 * (own.stem + POOLED * own.maximum))

    def _batch(self, extent: Extent) -> int:
        """Scans in the largest batch."""
        return -(-extent.scans // max(1, extent.scans // self.training.batch))

    def _sizes(self, extent: Extent) -> Sizes:
        return sizes_of(extent.shape, extent.channels, self.width, self.depth)

    def _network(self, sight: WholeSight, covariates: int, task: Task, seed: int) -> ResNet:
        network = ResNet(
            sight.channels, task.outputs, seed, width=self.width, depth=self.depth, covariates=covariates
        )
        return network.to(sight.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class WholeSight:
    """All voxels of scans on one grid. A `Sight`."""

    shape: tuple[int, int, int]
    channels: int
    device: torch.device

    def see(self, scan: CubeSource) -> Float[Tensor, "1 c z y x"]:
        """See `Sight`. Raises SourceFailed too."""
        self._refuse_other(scan)
        return torch.from_numpy(whole(scan))[None].to(self.device, memory_format=torch.channels_last_3d)

    def look(self, scan: CubeSource, slopes: Slopes) -> Look:
        """Every voxel is looked at; nothing is known of distance or saliency."""
        self._refuse_other(scan)
        return Look(voxels=int(np.prod(scan.shape)))

    def tensors(self) -> dict[str, Array]:
        """None."""
        return {}

    def manifest(self) -> dict[str, Any]:
        """See `Sight`."""
        return {"shape": list(self.shape), "channels": self.channels}

    def _refuse_other(self, scan: CubeSource) -> None:
        """Raise InvalidShape for a scan that is not on the training's grid."""
        if (scan.shape, scan.channels) != (self.shape, self.channels):
            raise InvalidShape(
                f"scans are {scan.shape} with {scan.channels} channels, the training's {self.shape} with "
                f"{self.channels}: prepare them as those were"
            )


class _Kept:
    """Whole scans as a batch, kept while there is room."""

    def __init__(self, scans: tuple[CubeSource, ...], device: torch.device) -> None:
        self._scans, self._device = scans, device
        self._room = KEEP_BYTES
        self._kept: dict[int, Float[Tensor, "c z y x"]] = {}

    def __call__(self, numbers: Int64) -> Float[Tensor, "b c z y x"]:
        """Some scans."""
        batch = torch.stack([self._scan(number) for number in numbers.tolist()])
        return batch.to(self._device, memory_format=torch.channels_last_3d)

    def _scan(self, number: int) -> Float[Tensor, "c z y x"]:
        if number in self._kept:
            return self._kept[number]
        values = torch.from_numpy(whole(self._scans[number]))
        if values.nbytes <= self._room:
            self._room -= values.nbytes
            self._kept[number] = values
        return values
