"""Other factorisations of a network's kernels at a number of parameters: what tensor rings are measured by.

    svd        O x (I kh kw), the usual low-rank layer: one relative error for all layers
    tucker2    Tucker of outputs and inputs (Kim et al. 2016), by HOSVD: one relative error for all layers
    tltorch_*  TensorLy-Torch's layers with its own ranks: one share of parameters for all layers

A peer is the smallest of its kind with at least so many parameters as it is compared at, so that it never has
fewer; every kernel that its factors do not make smaller stays as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar_resnet import CifarResNet, block_convolutions
from models.compression.applying import exchange_
from models.convolutions import geometry_of
from models.rsdtr.layers import LowRankConv
from models.rsdtr.low_rank import LowRankShape, low_rank_of
from models.rsdtr.spectra import Spectra

BISECTIONS = 12
TLTORCH = {"tltorch_tucker": "tucker", "tltorch_cp": "cp", "tltorch_tt": "tt"}
"""By name: what TensorLy-Torch calls it."""

Make = Callable[[nn.Conv2d, float], nn.Module | None]
"""(layer, how fine: 0 .. 1, finer is larger) -> the factorised layer, or None where dense is no larger."""


def peers() -> dict[str, Make]:
    """Those that are installed."""
    known: dict[str, Make] = {"svd": svd, "tucker2": tucker2}
    if find_spec("tltorch") is not None:
        known |= {name: _tltorch(kind) for name, kind in TLTORCH.items()}
    return known


def at_parameters(network: CifarResNet, make: Make, count: int, *, empty: Make | None = None) -> CifarResNet:
    """A copy of the network, its blocks' kernels factorised, of at least `count` parameters.

    `empty` makes layers of the same size for less.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = parameters(factorised(network, empty or make, middle)) >= count
        low, high = (low, middle) if enough else (middle, high)
    return factorised(network, make, high)


def factorised(network: CifarResNet, make: Make, fineness: float) -> CifarResNet:
    """A copy of the network with layers of one fineness."""
    made = copy.deepcopy(network)
    layers = {name: make(layer, fineness) for name, layer in block_convolutions(made).items()}
    exchange_(made, {name: layer for name, layer in layers.items() if layer is not None})
    return made


def parameters(network: nn.Module) -> int:
    """Numbers of a network that are learnt."""
    return sum(own.numel() for own in network.parameters())


def svd(layer: nn.Conv2d, fineness: float) -> nn.Module | None:
    """Two convolutions: with the kernel to the rank, and 1x1 from there."""
    geometry = geometry_of(layer)
    spectra = Spectra(layer.weight.detach().double()[None], 1 - fineness)
    shape = LowRankShape(geometry.block_shape, (), spectra.rank((0,)))
    if shape.storage >= layer.weight.numel():
        return None
    second, first = low_rank_of(spectra, shape)
    return LowRankConv(geometry, shape, (second.float(), first.float()))


def tucker2(layer: nn.Conv2d, fineness: float) -> nn.Module | None:
    """1x1, the core with the kernel, 1x1; the error in equal parts on outputs and inputs."""
    spectra = Spectra(layer.weight.detach().double()[None], 1 - fineness)
    outputs, inputs = (spectra.tails((axis,)).rank(spectra.allowed / 2) for axis in (0, 1))
    o, i, *sides = layer.weight.shape
    if o * outputs + i * inputs + outputs * inputs * sides[0] * sides[1] >= layer.weight.numel():
        return None
    left, right = spectra.cut((0,), outputs)[0][0], spectra.cut((1,), inputs)[0][0]
    core = torch.einsum("oihw,oa,ib->abhw", spectra.arrays[0], left, right)
    made = nn.Sequential(
        nn.Conv2d(i, inputs, 1, bias=False),
        nn.Conv2d(inputs, outputs, tuple(sides), layer.stride, layer.padding, bias=False),  # type: ignore[arg-type]
        nn.Conv2d(outputs, o, 1, bias=False),
    )
    for conv, weight in zip(made, (right.mT[..., None, None], core, left[..., None, None]), strict=True):
        assert isinstance(conv.weight, Tensor)
        conv.weight.data = weight.float().contiguous()
    return made


def _tltorch(kind: str) -> Make:
    def make(layer: nn.Conv2d, fineness: float, *, decompose: bool = True) -> nn.Module | None:
        from tltorch import FactorizedConv

        settings: dict[str, Any] = {"rank": fineness, "factorization": kind}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = FactorizedConv.from_conv(
                layer, implementation="reconstructed", decompose_weights=decompose, **settings
            )
        return made if parameters(made) < layer.weight.numel() else None

    return make


def empty_of(name: str, make: Make) -> Make:
    """What makes layers of the same size: TensorLy-Torch's without their decomposition."""
    if name not in TLTORCH:
        return make
    return lambda layer, fineness: make(layer, fineness, decompose=False)  # type: ignore[call-arg]
