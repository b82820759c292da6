"""A plain 3-D residual network (Hara, Kataoka & Satoh, Can spatiotemporal 3D CNNs retrace the history of 2D
CNNs and ImageNet?, CVPR 2018; after He et al., Deep residual learning, CVPR 2016).

A 7^3 convolution with stride (1, 2, 2), a 3^3 maximum with stride 2, four stages of basic blocks (two 3^3
convolutions with batch normalisation, beside a shortcut), each stage with twice the channels of the one
before and, from the second on, stride 2. Shortcuts of another size are 1^3 convolutions (type B). At the end
the mean over all places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.errors import InvalidConfig
from models.regressors.neural import RowNetwork

DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks in each stage."""
EXPANSION = 8
"""The last stage has so many times the width of the first."""
OUTPUT_DEVIATION = 0.01
"""Of the last layer's first weights: predictions begin near 0."""
Strides = tuple[int, int, int]


class ResNet(RowNetwork):
    """Volumes (b, c, Z, Y, X) and covariates (b, t) to outputs (b, o); covariates join at the last layer.

    Weights are drawn from `seed` alone (He normal by fan-out, normalisations the identity): torch's own
    random state is neither read nor changed. Raises InvalidConfig for a depth that is not in `DEPTHS`, or a
    width below 1.
    """

    def __init__(
        self, channels: int, outputs: int, seed: int, *, width: int = 64, depth: int = 34, covariates: int = 0
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise InvalidConfig("depth", depth, f"one of {', '.join(map(str, DEPTHS))}")
        if width < 1:
            raise InvalidConfig("width", width, "at least 1")
        generator = torch.Generator().manual_seed(seed)
        self.stem = Unit(channels, width, 7, (1, 2, 2), generator)
        blocks, before = [], width
        for stage, count in enumerate(DEPTHS[depth]):
            after = width << stage
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(before, after, stride, generator))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.outputs = _linear(EXPANSION * width + covariates, outputs, generator)

    def features(self, seen: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b f"]:
        """The means over all places."""
        places = nn.functional.max_pool3d(self.stem(seen).relu_(), 3, stride=2, padding=1)
        return self.blocks(places).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

    def outputs_of(
        self, features: Float[Tensor, "n f"], covariates: Float[Tensor, "n t"]
    ) -> Float[Tensor, "n o"]:
        """Outputs of rows."""
        return self.outputs(torch.cat([features, covariates], dim=1))  # type: ignore[no-any-return]

    def settle(self, batches: Iterable[Float[Tensor, "b c z y x"]]) -> None:
        """Take the statistics of normalisation anew, with weights as they are: their mean over some batches.

        Evaluation begins with that. Those kept while weights moved lag behind them (Wu & Johnson, Rethinking
        "batch" in BatchNorm, 2021).
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm3d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.train()
        with torch.no_grad():
            for batch in batches:
                self.features(batch)
        self.eval()


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network without the network, the stem the first: its cubic kernel's side, and how
    many places it gives of a volume.
    """

    before: int
    after: int
    side: int
    places: int

    @property
    def weights(self) -> int:
        """Of the kernel, and of the normalisation behind it."""
        return self.before * self.after * self.side**3 + 2 * self.after

    @property
    def given(self) -> int:
        """Numbers that it gives of a volume."""
        return self.after * self.places


@dataclass(frozen=True)
class Sizes:
    """Numbers of a network: its weights, and what stem, maximum and all convolutions give of a volume."""

    weights: int
    stem: int
    maximum: int
    convolutions: int


def convolutions_of(shape: Strides, channels: int, width: int, depth: int) -> list[Convolution]:
    """All of them, in the order of the network's modules."""
    places = shape[0], -(-shape[1] // 2), -(-shape[2] // 2)
    found = [Convolution(channels, width, 7, prod(places))]
    places, before = _halved(places), width
    for stage, count in enumerate(DEPTHS[depth]):
        after = width << stage
        places = _halved(places) if stage else places
        for number in range(count):
            found.append(Convolution(before, after, 3, prod(places)))
            found.append(Convolution(after, after, 3, prod(places)))
            if stage and not number:
                found.append(Convolution(before, after, 1, prod(places)))
            before = after
    return found


def sizes_of(shape: Strides, channels: int, width: int, depth: int) -> Sizes:
    """Known without the network, but for its last layer."""
    found = convolutions_of(shape, channels, width, depth)
    maximum = width * prod(_halved((shape[0], -(-shape[1] // 2), -(-shape[2] // 2))))
    return Sizes(
        sum(each.weights for each in found), found[0].given, maximum, sum(each.given for each in found)
    )


class Unit(nn.Module):
    """A convolution without bias, and batch normalisation."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int | Strides, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.conv: nn.Conv3d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv3d, before, after, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        self.norm = nn.BatchNorm3d(after)

    def forward(self, values: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d z2 y2 x2"]:
        """Normalised channels, in memory of their own; in evaluation that of the convolution's output."""
        made: Tensor = self.conv(values)
        if self.norm.training or torch.is_grad_enabled():
            return self.norm(made)  # type: ignore[no-any-return]
        scale, shift = (each.view(-1, 1, 1, 1) for each in self._affine())
        return torch.addcmul(shift, made, scale, out=made)

    def _affine(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """What normalisation multiplies and adds in evaluation."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return scale, norm.bias - norm.running_mean * scale


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = Unit(before, after, 3, stride, generator)
        self.second = Unit(after, after, 3, 1, generator)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else Unit(before, after, 1, stride, generator)

    def forward(self, values: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d z2 y2 x2"]:
        """What the convolutions add to the shortcut."""
        added = self.second(self.first(values).relu_())
        added += self.shortcut(values)
        return added.relu_()  # type: ignore[no-any-return]


def least_places(shape: tuple[int, int, int]) -> int:
    """Places that are left of a volume before the last mean."""
    Z, Y, X = shape
    Y, X = -(-Y // 2), -(-X // 2)
    for _ in range(4):
        Z, Y, X = _halved((Z, Y, X))
    return Z * Y * X


def _halved(sides: Strides) -> Strides:
    """What a stride of 2 leaves."""
    z, y, x = (-(-side // 2) for side in sides)
    return z, y, x


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.normal_(linear.weight, std=OUTPUT_DEVIATION, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
