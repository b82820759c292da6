"""The dense baseline with spectral convolutions from the start: small, and each of a known largest gain.

A `resnet3d` whose convolutions but the stem have weights U Sigma V^T of low rank: with orthonormal U and V
(SVDP), or with both as tensor trains of orthonormal frames (STTP): Obukhov et al., Spectral tensor train
parameterization of deep learning layers, AISTATS 2021. Only the degrees of freedom are trained and saved.
Frames begin near the identity's, as there; the largest singular value of every weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import ClassVar, cast

import torch
from torch import nn

from models.errors import InvalidConfig
from models.learning.task import Task
from models.regressors.base import Extent
from models.regressors.memory import FLOAT32
from models.regressors.resnet import ResNet, Sizes, convolutions_of
from models.regressors.resnet3d import ResNet3d, WholeSight
from models.sttp.apply import SpectralConfig, spectral_
from models.sttp.shapes import Layout
from models.sttp.spectrum import KINDS, Spectrum
from models.sttp.weights import WeightShape
from models.training import TrainingConfig

STEM = "stem.conv"
FRAME_COPIES = 5
"""Of frames: as they are made, with singular values, as filters, and gradients of these."""
WEIGHT_COPIES = 2
"""Of a weight that is made whole: with its gradient."""


@dataclass(frozen=True)
class SpectralResNet3d(ResNet3d):
    """What both recipes have in common. Raises InvalidConfig, naming the setting.

    `rank` is the largest of any bond, in all layers; None: the largest common share of the full rank with
    which the spectral layers have `share` of their dense parameters, at most. `spectrum` is "constant",
    "learned", or "regularised", with the D-optimal penalty in the loss. Decay of weights would pull at
    reflectors and not at norms: there is none by default.
    """

    method: ClassVar[str]

    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=30, batch=8, rate=3e-3))
    spectrum: str = "learned"
    rank: int | None = None
    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spectrum not in KINDS:
            raise InvalidConfig("spectrum", self.spectrum, f"one of {', '.join(KINDS)}")
        if self.rank is not None and not (isinstance(self.rank, int) and self.rank >= 1):
            raise InvalidConfig("rank", self.rank, "a whole number of at least 1, or none")
        if not 0 < self.share <= 1:
            raise InvalidConfig("share", self.share, "above 0, at most 1")
        if self.rank is None and (least := self._parameters(1)) > int(self.share * self._dense):
            raise InvalidConfig("share", self.share, f"at least {least / self._dense:.4f}, which rank 1 has")

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: beside what `resnet3d` takes, the dense weights that are drawn first, all frames,
        and what stands between two factors.
        """
        places = [each.places for each in convolutions_of(extent.shape, 1, self.width, self.depth)[1:]]
        between = sum(
            layout.width * count
            for layout, count in zip(self._layouts, places, strict=True)
            if _is_factored(layout)
        )
        made, drawn = sum(map(_made, self._layouts)), super()._sizes(extent).weights
        return super().training_bytes(extent) + FLOAT32 * (drawn + self._batch(extent) * between + made)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: beside what `resnet3d` takes, the frames of a layer."""
        return super().answering_bytes(extent) + FLOAT32 * max(map(_made, self._layouts))

    def _sizes(self, extent: Extent) -> Sizes:
        dense = super()._sizes(extent)
        own = sum(layout.parameters for layout in self._layouts)
        return replace(dense, weights=dense.weights - self._dense + own)

    def _network(self, sight: WholeSight, covariates: int, task: Task, seed: int) -> ResNet:
        network = super()._network(sight, covariates, task, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return spectral_(network, self._config, _is_spectral)

    @cached_property
    def _config(self) -> SpectralConfig:
        budget = None if self.rank is not None else int(self.share * self._dense)
        return SpectralConfig(
            self.method,
            rank=self.rank,
            parameters=budget,
            spectrum=cast(Spectrum, self.spectrum),
            start="identity",
        )

    @cached_property
    def _shapes(self) -> list[WeightShape]:
        """Of the spectral weights; a scan's size and channels are nothing to them."""
        found = convolutions_of((1, 1, 1), 1, self.width, self.depth)[1:]
        return [WeightShape((each.after, each.before, *3 * (each.side,))) for each in found]

    @cached_property
    def _dense(self) -> int:
        """Numbers of these weights."""
        return sum(prod(shape.shape) for shape in self._shapes)

    @cached_property
    def _layouts(self) -> list[Layout]:
        return [*map(self._layout, self._shapes, self._config.ranks(self._shapes))]

    def _layout(self, shape: WeightShape, rank: int) -> Layout:
        return shape.layout(self.method, rank, constant=self.spectrum == "constant")

    def _parameters(self, rank: int) -> int:
        """Degrees of freedom with a rank in all layers."""
        return sum(self._layout(shape, rank).parameters for shape in self._shapes)


@dataclass(frozen=True)
class SvdpResNet3d(SpectralResNet3d):
    """U and V are frames. Raises InvalidConfig, naming the setting."""

    name: ClassVar[str] = "resnet3d-svdp"
    method: ClassVar[str] = "svdp"


@dataclass(frozen=True)
class SttpResNet3d(SpectralResNet3d):
    """U and V are tensor trains of frames, of prime factors of the channels and a mode for the kernel.

    Raises InvalidConfig, naming the setting.
    """

    name: ClassVar[str] = "resnet3d-sttp"
    method: ClassVar[str] = "sttp"

    share: float = 0.05


def _is_spectral(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Conv3d) and name != STEM


def _is_factored(layout: Layout) -> bool:
    """Whether fewer multiplications are taken without the whole weight."""
    return layout.width * (layout.outputs + layout.inputs) < layout.outputs * layout.inputs


def _made(layout: Layout) -> int:
    """Numbers that a layer makes of its degrees of freedom."""
    frames = FRAME_COPIES * layout.width * (layout.outputs + layout.inputs)
    return frames if _is_factored(layout) else frames + WEIGHT_COPIES * layout.outputs * layout.inputs
