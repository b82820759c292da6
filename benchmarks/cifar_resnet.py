"""Residual networks for CIFAR (He et al. 2016, section 4.2), with weights that others have trained."""

from __future__ import annotations

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fields import DATA

FOLDER = DATA / "cifar10"
BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet56": 9}
"""Of each of the three stages."""
SIDE = 32


class Block(nn.Module):
    """Two convolutions beside a shortcut, which has no numbers of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Missing channels of the shortcut are zeros, half before and half after."""
        short = x[:, :, :: self.stride, :: self.stride]
        short = functional.pad(short, (0, 0, 0, 0, self.missing // 2, self.missing // 2))
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + short)


class CifarResNet(nn.Module):
    """6 n + 2 layers of 16, 32 and 64 channels; images (n, 3, 32, 32) to 10 scores."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 10"]:
        """Scores of images that were normalised as ImageNet's are."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def pretrained(name: str) -> CifarResNet:
    """A network of `BLOCKS` in evaluation. `missing` says whether its weights are there."""
    network = CifarResNet(BLOCKS[name])
    weights = load_file(FOLDER / f"{name}.safetensors")
    counts = {key for key in network.state_dict() if key.endswith("num_batches_tracked")}
    network.load_state_dict({**weights, **dict.fromkeys(counts - set(weights), torch.tensor(0))})
    return network.eval()


def missing() -> str | None:
    """Why there are no pretrained networks, if there are none."""
    return None if FOLDER.is_dir() else f"no pretrained networks: {FOLDER} is not there"


def block_convolutions(network: CifarResNet) -> dict[str, nn.Conv2d]:
    """Those of the blocks, by name: neither the first layer nor the last."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name.startswith("layer")
    }


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = Block(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
