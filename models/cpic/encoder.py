"""What is computed from the cube around a voxel: the tensor's entries E(z, y, x, feature).

Encoders take boxes, and give the features of all voxels in it that are half a cube or more away from its
faces: those are the same as from the cube around each voxel, but neighbours share most of the work. A voxel's
features depend on the cube around it alone. A new encoder is one class here and one line in `ENCODERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from models.cpic.geometry import Sides, Work, convolution_work
from models.errors import InvalidShape
from models.intensities import IntensityStatistics

HIDDEN_CHANNELS = (5, 15, 25)
KERNEL = 3
RECEPTIVE_FIELD = 1 + (KERNEL - 1) * (len(HIDDEN_CHANNELS) + 1)
LARGEST = float(torch.finfo(torch.float32).max)


class Encoder(Protocol):
    """A function of boxes of raw intensities, with what is known of it beforehand. It is differentiable."""

    @property
    def cube_size(self) -> int:
        """Edge d of the cube that a voxel's features depend on; odd: the voxel is in the middle."""

    @property
    def features(self) -> int:
        """Values per voxel."""

    @property
    def value_range(self) -> tuple[float, float]:
        """No value is below the first or above the second, whatever the cube."""

    @property
    def rank_tolerance(self) -> float:
        """Singular values of its samples below this times the largest are rounding errors."""

    @property
    def scratch_bytes(self) -> int:
        """Memory that encoding takes, per cube; for a box as many times more as it has numbers (`work`)."""

    @property
    def network(self) -> nn.Module | None:
        """What holds the weights; encoders of several scans may share it. None where there are none."""

    def work(self, outputs: Sides) -> Work:
        """What encoding a box takes that has these sides of outputs."""

    def standardised(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n c z y x"]:
        """Raw intensities as the network takes them: the part that differs from scan to scan."""

    def encoded(self, boxes: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Features of boxes from `standardised`: zo = z - d + 1, and so on.

        Raises InvalidShape for a box smaller than the cube.
        """

    def __call__(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Features of boxes of raw intensities: `standardised`, then `encoded`."""


@dataclass(frozen=True)
class Identity:
    """Standardised intensities, (value - mean) / std; zeros where the scan is constant. One per channel."""

    features: int
    statistics: IntensityStatistics
    cube_size: int = 1
    rank_tolerance: float = 1e-12
    scratch_bytes: int = 16
    network: None = None

    @property
    def value_range(self) -> tuple[float, float]:
        """The scan's minimum and maximum, standardised."""
        extremes = torch.tensor([self.statistics.minimum, self.statistics.maximum], dtype=torch.float64)
        low, high = self.statistics.standardised(extremes).tolist()
        return low, high

    def work(self, outputs: Sides) -> Work:
        """One voxel read for each output."""
        return Work(0, 0, math.prod(outputs), self.features * math.prod(outputs))

    def standardised(self, boxes: Float64[Tensor, "n c z y x"]) -> Float64[Tensor, "n c z y x"]:
        """(value - mean) / std."""
        return self.statistics.standardised(boxes)

    def encoded(self, boxes: Float64[Tensor, "n c z y x"]) -> Float64[Tensor, "n c z y x"]:
        """The boxes themselves."""
        return boxes

    def __call__(self, boxes: Float64[Tensor, "n c z y x"]) -> Float64[Tensor, "n c z y x"]:
        """Features of boxes of raw intensities."""
        return self.encoded(self.standardised(boxes))


class CpicEncoder(nn.Module):
    """The paper's network: four 3^3 convolutions without padding, ReLU between them, a sigmoid at the end.

    Takes boxes of at least 9^3 voxels, standardised per scan. Weights are drawn from `seed` alone (He normal,
    biases zero): torch's own random state is neither read nor changed. Ours: other `hidden` widths, a
    `negative_slope` of the rectifiers, without which narrow layers are born dead to some tasks, no `sigmoid`,
    and with `intensity` the mean of each input channel over the cube as a further feature: what is coarse
    need not be learned, and is not lost.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        seed: int,
        *,
        hidden: Sequence[int] = HIDDEN_CHANNELS,
        negative_slope: float = 0.0,
        sigmoid: bool = True,
        intensity: bool = False,
    ) -> None:
        super().__init__()
        self.widths = (channels, *hidden, features)
        self.intensity = intensity
        layers: list[nn.Module] = []
        for before, after in pairwise(self.widths):
            layers.append(_empty_conv(before, after))
            layers.append(_rectifier(negative_slope))
        self.layers = nn.Sequential(*layers[:-1], *([nn.Sigmoid()] if sigmoid else []))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, a=negative_slope, generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def cube_size(self) -> int:
        """The receptive field."""
        return 1 + (KERNEL - 1) * (len(self.widths) - 1)

    @property
    def features(self) -> int:
        """Values per voxel."""
        return self.widths[-1] + (self.widths[0] if self.intensity else 0)

    def forward(self, boxes: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Features of all voxels but 4 at each face. Raises InvalidShape below the receptive field."""
        if min(boxes.shape[2:]) < self.cube_size:
            raise InvalidShape(
                f"the encoder's receptive field is {self.cube_size}^3: a box of {tuple(boxes.shape[2:])} "
                "is too small for it"
            )
        learned: Tensor = self.layers(boxes)
        return torch.cat([learned, _means(boxes, self.cube_size)], dim=1) if self.intensity else learned


def _rectifier(negative_slope: float) -> nn.Module:
    """The paper's where there is no slope."""
    return nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True)


def _means(boxes: Float[Tensor, "n c z y x"], size: int) -> Float[Tensor, "n c zo yo xo"]:
    """The mean over the cube of `size` around each voxel; axis by axis, each a running sum."""
    for axis in (2, 3, 4):
        boxes = boxes.unfold(axis, size, 1).mean(dim=-1)
    return boxes


def _empty_conv(before: int, after: int) -> nn.Conv3d:
    """A convolution whose weights are still to be drawn: torch's way would draw from its global state."""
    conv: nn.Conv3d = nn.utils.skip_init(nn.Conv3d, before, after, KERNEL)  # type: ignore[no-untyped-call]
    return conv


@dataclass(frozen=True, eq=False)
class StandardisedCpic:
    """The paper's network on one scan's intensities, standardised."""

    network: CpicEncoder
    features: int
    statistics: IntensityStatistics
    cube_size: int = RECEPTIVE_FIELD
    value_range: tuple[float, float] = (0.0, 1.0)
    rank_tolerance: float = 1e-6
    scratch_bytes: int = 64 << 10

    def work(self, outputs: Sides) -> Work:
        """Of its four convolutions."""
        return convolution_work(self.network.widths, KERNEL, outputs)

    def standardised(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n c z y x"]:
        """(value - mean) / std in float64, then in the precision of the weights."""
        return self.statistics.standardised(boxes).to(next(self.network.parameters()).dtype)

    def encoded(self, boxes: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Run the network."""
        return self.network(boxes)  # type: ignore[no-any-return]

    def __call__(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Features of boxes of raw intensities."""
        return self.encoded(self.standardised(boxes))


@dataclass(frozen=True, eq=False)
class LearnedCpic:
    """A network that is trained, or was, on scans that are prepared already (`models.learning.preparation`).

    Its features are (network - shift) / scale, channel by channel, cut off at `limit`: of comparable size, so
    that none outweighs the others in a train, and bounded, as a certificate needs it. Without a shift they
    are the network's own.
    """

    network: CpicEncoder
    shift: Float[Tensor, " f"] | None = None
    scale: Float[Tensor, " f"] | None = None
    limit: float = LARGEST
    rank_tolerance: float = 1e-6
    scratch_bytes: int = 64 << 10

    @property
    def cube_size(self) -> int:
        """The receptive field."""
        return self.network.cube_size

    @property
    def features(self) -> int:
        """Values per voxel."""
        return self.network.features

    @property
    def value_range(self) -> tuple[float, float]:
        """The limit, both ways."""
        return -self.limit, self.limit

    def work(self, outputs: Sides) -> Work:
        """Of its convolutions."""
        return convolution_work(self.network.widths, KERNEL, outputs)

    def standardised(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n c z y x"]:
        """As they are, in the precision of the weights."""
        return boxes.to(next(self.network.parameters()).dtype)

    def encoded(self, boxes: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Run the network; shift, scale, limit."""
        features: Tensor = self.network(boxes)
        if self.shift is None or self.scale is None:
            return features
        across = (-1, 1, 1, 1)
        return ((features - self.shift.view(across)) / self.scale.view(across)).clamp(-self.limit, self.limit)

    def __call__(self, boxes: Float64[Tensor, "n c z y x"]) -> Float[Tensor, "n f zo yo xo"]:
        """Features of boxes of prepared intensities."""
        return self.encoded(self.standardised(boxes))


MakeEncoder = Callable[[int, int, int, IntensityStatistics, torch.device], Encoder]
"""(channels, features asked for, seed, statistics, device) to the encoder of one scan."""


def identity(
    channels: int, features: int, seed: int, statistics: IntensityStatistics, device: torch.device
) -> Identity:
    """Standardised intensities: one feature per channel, whatever number was asked for."""
    return Identity(channels, statistics)


def random_cpic(
    channels: int, features: int, seed: int, statistics: IntensityStatistics, device: torch.device
) -> StandardisedCpic:
    """The paper's network with seeded random weights, in float32."""
    network = CpicEncoder(channels, features, seed).to(device).eval()
    return StandardisedCpic(network, features, statistics)


ENCODERS: dict[str, MakeEncoder] = {
    "identity": identity,
    "random_cpic": random_cpic,
}
