"""TensorLy-Torch's factorisations of the same layers of a network, at no fewer parameters than ours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from importlib.util import find_spec

from torch import nn

from models.compression.applying import exchange_
from models.regressors.neural import RowNetwork

KINDS = {"tltorch_tucker": "tucker", "tltorch_tt": "tt", "tltorch_cp": "cp"}
"""By name: what TensorLy-Torch calls it."""
SIZED_BEFORE = ("cp",)
"""Kinds whose layers have their sizes before they are decomposed, which takes long."""
BISECTIONS = 12


def missing() -> str | None:
    """Why there are no peers, if there are none."""
    return None if find_spec("tltorch") else "TensorLy-Torch is not installed: it is in the extra bench"


def at_parameters(network: RowNetwork, names: Collection[str], kind: str, count: int) -> RowNetwork:
    """A copy of the network with these layers factorised, one share for all, of `count` numbers at least.

    Ranks are those that the decompositions end with: before them most layers have other sizes.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        sized = _factorised(network, names, kind, middle, decompose=kind not in SIZED_BEFORE)
        enough = parameters(sized) >= count
        low, high = (low, middle) if enough else (middle, high)
    return _factorised(network, names, kind, high)


def parameters(module: nn.Module) -> int:
    """Numbers that are learnt."""
    return sum(own.numel() for own in module.parameters())


def _factorised(
    network: RowNetwork, names: Collection[str], kind: str, share: float, *, decompose: bool = True
) -> RowNetwork:
    made = copy.deepcopy(network)
    layers = {name: made.get_submodule(name) for name in names}
    peers = {name: _layer(layer, kind, share, decompose) for name, layer in layers.items()}
    exchange_(
        made, {name: peer for name, peer in peers.items() if parameters(peer) < parameters(layers[name])}
    )
    return made


def _layer(layer: nn.Module, kind: str, share: float, decompose: bool) -> nn.Module:
    from tltorch import FactorizedConv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = FactorizedConv.from_conv(
            layer,
            rank=share,
            factorization=kind,
            implementation="reconstructed",
            decompose_weights=decompose,
        )
    return made
