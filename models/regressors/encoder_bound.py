"""Encoders of a bounded gain: layers with spectral weights, and what is certified of their features.

With every layer's largest singular value at a bound, features of two boxes of prepared intensities x and y
are no further apart than |E(x) - E(y)| <= L |x - y|, over all voxels and features: noise of a scan moves its
tensor, and what is made of that, by so much at most. L is computed from the weights as they are
(`models.sttp.bounds`): the product of sqrt(27) sigma_max over 3^3 kernels and of the slopes between them;
beside mean intensities, a filter of norm 1, hypot(L, 1); and over the features' scales, channel by channel.
"""

from __future__ import annotations

from math import hypot

from torch import nn

from models.cpic.encoder import LearnedCpic
from models.sttp.apply import svdp_
from models.sttp.bounds import ROUNDING, operator_bound
from models.sttp.folding import fold_
from models.sttp.parametrizations import spectral_of


def bound_(network: nn.Module, bound: float) -> None:
    """Give all layers weights of full rank whose largest singular value is `bound`, learned, in place.

    Weights are those that they were, times one number for each layer.
    """
    svdp_(network, rho=1.0, bound=bound, execution="dense")


def freeze_(network: nn.Module) -> None:
    """The network that learns no more, of plain layers, in place."""
    fold_(network)
    network.eval().requires_grad_(False)


def bounds_of(network: nn.Module) -> tuple[float, ...]:
    """Of the layers that have one, in the order of the modules."""
    found = (spectral_of(layer) for layer in network.modules())
    return tuple(float(spectral.bound) for spectral in found if spectral is not None and spectral.held)


def certified_bound(encoder: LearnedCpic) -> float:
    """L of an encoder's features, shift, scale and limit among them, in exact arithmetic."""
    network, scale = encoder.network, encoder.scale
    shares = [1.0] * network.features if scale is None else scale.double().reciprocal().tolist()
    learned = network.widths[-1]
    beside = max(shares[learned:], default=0.0)
    return hypot(operator_bound(network.layers) * max(shares[:learned]), beside) * ROUNDING
