"""Other factorisations of a network's kernels at a number of parameters: what compressions are measured by.

    svd        O x (I kh kw), the usual low-rank layer: one relative error for all layers
    tucker2    Tucker of outputs and inputs (Kim et al. 2016), by HOSVD: one relative error for all layers

and those of `benchmarks.tltorch_peers`. A peer is the smallest of its kind with at least so many parameters
as it is compared at, so that it never has fewer; every layer that its factors do not make smaller stays as it
is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.compression.applying import exchange_
from models.convolutions import geometry_of
from models.rsdtr.layers import LowRankConv
from models.rsdtr.low_rank import LowRankShape, low_rank_of
from models.rsdtr.spectra import Spectra

BISECTIONS = 12

Make = Callable[[nn.Module, float], nn.Module]
"""(layer, how fine: 0 .. 1, finer is larger) -> the factorised layer."""
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Peer:
    """A kind of factorisation; `sized` makes layers of the same sizes, for less where that can be."""

    make: Make
    sized: Make


def at_parameters(network: Network, names: Collection[str], peer: Peer, count: int) -> Network:
    """A copy of the network, the layers of these names factorised, of at least `count` parameters."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = parameters(factorised(network, names, peer.sized, middle)) >= count
        low, high = (low, middle) if enough else (middle, high)
    return factorised(network, names, peer.make, high)


def factorised(network: Network, names: Collection[str], make: Make, fineness: float) -> Network:
    """A copy of the network with layers of one fineness, where that makes them smaller."""
    made = copy.deepcopy(network)
    layers = {name: made.get_submodule(name) for name in names}
    others = {name: make(layer, fineness) for name, layer in layers.items()}
    exchange_(
        made, {name: other for name, other in others.items() if parameters(other) < parameters(layers[name])}
    )
    return made


def parameters(network: nn.Module) -> int:
    """Numbers of a network that are learnt."""
    return sum(own.numel() for own in network.parameters())


def svd(layer: nn.Module, fineness: float) -> nn.Module:
    """Two convolutions: with the kernel to the rank, and 1x1 from there."""
    assert isinstance(layer, nn.Conv2d)
    geometry, spectra = geometry_of(layer), Spectra(layer.weight.detach().double()[None], 1 - fineness)
    shape = LowRankShape(geometry.block_shape, (), spectra.rank((0,)))
    second, first = low_rank_of(spectra, shape)
    return LowRankConv(geometry, shape, (second.float(), first.float()))


def tucker2(layer: nn.Module, fineness: float) -> nn.Module:
    """1x1, the core with the kernel, 1x1; the error in equal parts on outputs and inputs."""
    assert isinstance(layer, nn.Conv2d)
    spectra = Spectra(layer.weight.detach().double()[None], 1 - fineness)
    outputs, inputs = (spectra.tails((axis,)).rank(spectra.allowed / 2) for axis in (0, 1))
    o, i, *sides = layer.weight.shape
    left, right = spectra.cut((0,), outputs)[0][0], spectra.cut((1,), inputs)[0][0]
    core = torch.einsum("oihw,oa,ib->abhw", spectra.arrays[0], left, right)
    made = nn.Sequential(
        nn.Conv2d(i, inputs, 1, bias=False),
        nn.Conv2d(inputs, outputs, tuple(sides), layer.stride, layer.padding, bias=False),  # type: ignore[arg-type]
        nn.Conv2d(outputs, o, 1, bias=False),
    )
    for conv, factor in zip(made, (right.mT[..., None, None], core, left[..., None, None]), strict=True):
        assert isinstance(conv.weight, Tensor)
        conv.weight.data = factor.float().contiguous()
    return made


OWN = {"svd": Peer(svd, svd), "tucker2": Peer(tucker2, tucker2)}
"""Those made here, by name."""
