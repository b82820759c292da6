"""Wide residual networks for CIFAR (Zagoruyko & Komodakis 2016), with biases as in the STTP paper's code."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

STEM = 16
"""Channels of the first convolution."""


class Block(nn.Module):
    """Two convolutions, each after a normalisation and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """A shortcut that changes the channels reads what the first convolution does."""
        active = functional.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(active)
        added: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active)))) + short
        return added


class WideResNet(nn.Module):
    """`depth` = 6 n + 4 layers of 16, 32 and 64 times `widening` channels; images (n, 3, h, w) to 10 scores.

    `stride` is that of the first convolution: 1 in the paper.
    """

    def __init__(self, depth: int, widening: int, stride: int = 1) -> None:
        super().__init__()
        widths = [STEM * widening * factor for factor in (1, 2, 4)]
        self.stem = nn.Conv2d(3, STEM, 3, stride=stride, padding=1)
        self.stages = nn.Sequential(
            *(
                _stage(inputs, outputs, (depth - 4) // 6, 1 if inputs == STEM else 2)
                for inputs, outputs in zip([STEM, *widths], widths, strict=False)
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 10"]:
        """Scores of normalised images."""
        x = functional.relu(self.bn(self.stages(self.stem(x))))
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
