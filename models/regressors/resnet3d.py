"""The dense baseline: a 3-D ResNet-34 that is trained on whole scans (`resnet`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.regressors.base import Extent, Look
from models.regressors.dense import whole
from models.regressors.linear_model import refuse_other, refuse_task
from models.regressors.memory import FLOAT32, scan_bytes, slab_bytes
from models.regressors.neural import (
    Answers,
    LookAt,
    RowLearner,
    Scaling,
    load_weights,
    predicted,
    refuse_covariates,
    weights_of,
)
from models.regressors.resnet import DEPTHS, ResNet, Sizes, least_places, sizes_of
from models.regressors.settings import recipe_of
from models.training import TrainingConfig, Watch, train
from models.types import Array, CubeSource, Int64

SCHEMA = 1
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
    ) -> ResNet3dModel:
        """See `Regressor`. Raises InvalidShape too where a batch leaves nothing to normalise by."""
        scans = cohort.inputs.scans
        places = least_places(scans[0].shape)
        smallest = min(self.training.batch, len(np.unique(cohort.inputs.scan_of)))
        if smallest * places < 2:
            raise InvalidShape(
                f"batch normalisation needs two values: scans of {scans[0].shape} shrink to one place, and "
                f"batches have {smallest} scan: give larger scans, or batches and cohorts of two or more"
            )
        covariates = Scaling.of(cohort.inputs.covariates)
        answers = Answers.of(task, cohort.targets)
        network = self._network(scans[0].channels, task, len(covariates.centre), seed, device)
        kept = _Kept(scans, device)
        learner = RowLearner(network, cohort, answers, covariates(cohort.inputs.covariates), kept, device)
        train(learner, self.training, seed=seed, watch=watch)
        batches = np.array_split(learner.scans, max(1, learner.items // self.training.batch))
        network.settle(map(kept, batches))
        return ResNet3dModel(network, answers, covariates, scans[0].shape, scans[0].channels, device)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> ResNet3dModel:
        """See `Regressor`."""
        refuse_other(tensors, manifest, SCHEMA)
        refuse_task(manifest, task)
        covariates = Scaling(**part("covariates", tensors))
        network = self._network(manifest["channels"], task, len(covariates.centre), 0, device)
        load_weights(network, part("network", tensors))
        z, y, x = manifest["shape"]
        answers = Answers(task, **manifest["answers"])
        return ResNet3dModel(network, answers, covariates, (z, y, x), manifest["channels"], device)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a step keeps what every layer gives of every scan of a batch."""
        own = self._sizes(extent)
        batch = -(-extent.scans // max(1, extent.scans // self.training.batch))
        step = FLOAT32 * (KEPT_OF_A_LAYER * own.convolutions + POOLED * own.maximum) + 2 * scan_bytes(extent)
        kept = slab_bytes(extent) + min(KEEP_BYTES, extent.scans * scan_bytes(extent))
        weights = FLOAT32 * own.weights
        return kept + max(CHECKPOINT_COPIES * weights, STEP_COPIES * weights + batch * step)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a whole scan, and what the first layer gives of it, half as many places."""
        own, one = self._sizes(extent), scan_bytes(extent)
        return one + max(slab_bytes(extent), one + FLOAT32 * (own.stem + POOLED * own.maximum))

    def _sizes(self, extent: Extent) -> Sizes:
        return sizes_of(extent.shape, extent.channels, self.width, self.depth)

    def _network(self, channels: int, task: Task, covariates: int, seed: int, device: torch.device) -> ResNet:
        network = ResNet(
            channels, task.outputs, seed, width=self.width, depth=self.depth, covariates=covariates
        )
        return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


class ResNet3dModel:
    """A trained network."""

    def __init__(
        self,
        network: ResNet,
        answers: Answers,
        covariates: Scaling,
        shape: tuple[int, int, int],
        channels: int,
        device: torch.device,
    ) -> None:
        self._network, self._answers, self._covariates = network.eval(), answers, covariates
        self._shape, self._channels, self._device = shape, channels, device

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`. One whole scan is held at a time. Raises SourceFailed."""
        refuse_covariates(inputs, len(self._covariates.centre))
        self._refuse_other(inputs.scans[0])
        covariates = self._covariates(inputs.covariates)
        look = _from_source(inputs.scans, self._device)
        return predicted(self._network, self._answers, inputs, covariates, look, self._device)

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """Every voxel is looked at; nothing is known of distance or saliency."""
        self._refuse_other(scan)
        return Look(voxels=int(np.prod(scan.shape)))

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        return {
            **under("network", weights_of(self._network)),
            **under("covariates", self._covariates.tensors()),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        return {
            "schema": SCHEMA,
            "shape": list(self._shape),
            "channels": self._channels,
            "task": self._answers.task.to_json(),
            "answers": self._answers.to_json(),
            "parameters": sum(weights.numel() for weights in self._network.parameters()),
            "digest": digest(self.tensors()),
        }

    def _refuse_other(self, scan: CubeSource) -> None:
        """Raise InvalidShape for a scan that is not on the training's grid."""
        if (scan.shape, scan.channels) != (self._shape, self._channels):
            raise InvalidShape(
                f"scans are {scan.shape} with {scan.channels} channels, the training's {self._shape} with "
                f"{self._channels}: prepare them as those were"
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


def _from_source(scans: tuple[CubeSource, ...], device: torch.device) -> LookAt:
    def look(numbers: Int64) -> Float[Tensor, "b c z y x"]:
        (number,) = numbers.tolist()
        volume = torch.from_numpy(whole(scans[number]))[None]
        return volume.to(device, memory_format=torch.channels_last_3d)

    return look
