"""TensorLy-Torch's factorised convolutions with its own ranks: one share for all layers.

A share of 1 is meant to give as many numbers as the dense kernel; a tensor train's ranks are then cut to what
its unfoldings can have, so that it may ask for more. The ranks of a layer are those that its decomposition
ends with.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from torch import nn

from benchmarks.kernel_peers import Peer

SHARES = {"tucker": 1.0, "cp": 1.0, "tt": 16.0}
"""By TensorLy-Torch's name: the largest share."""
SIZED_BEFORE = ("cp",)
"""Whose layers have their sizes before they are decomposed, which takes long."""


def missing() -> str | None:
    """Why there are no such peers, if there are none."""
    return None if find_spec("tltorch") else "TensorLy-Torch is not installed: it is in the extra bench"


def tltorch_peers() -> dict[str, Peer]:
    """By the names of the benchmarks."""
    return {f"tltorch_{kind}": _peer(kind) for kind in SHARES}


def _peer(kind: str) -> Peer:
    share = SHARES[kind]

    def make(layer: nn.Module, fineness: float) -> nn.Module:
        return _layer(layer, kind, share * fineness, decompose=True)

    def sized(layer: nn.Module, fineness: float) -> nn.Module:
        return _layer(layer, kind, share * fineness, decompose=False)

    return Peer(make, sized if kind in SIZED_BEFORE else make)


def _layer(layer: nn.Module, kind: str, share: float, *, decompose: bool) -> nn.Module:
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
