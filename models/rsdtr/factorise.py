"""A trained layer as a factorised one: the search, its factors, and the layer around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutions import Geometry, geometry_of, kernel_of
from models.rsdtr.candidates import RingConfig, paper_ring, smallest
from models.rsdtr.layers import FactorisedLayer, LowRankConv, LowRankLinear, RingConv
from models.rsdtr.low_rank import LowRankShape, low_rank_of
from models.rsdtr.ring import RingShape, TensorRing
from models.rsdtr.search import ring_of
from models.rsdtr.spectra import Spectra


@torch.no_grad()
def factorised(
    layer: nn.Module,
    config: RingConfig,
    spatial: tuple[int, ...] | None = None,
    name: str = "the kernel",
) -> FactorisedLayer | None:
    """A layer with a kernel within `config.eps` of this one's; None where dense is no larger, or no slower.

    In the layer's dtype, on its device, in its mode; `spatial` are the sizes of its inputs, for MACs. The
    layer is left as it is. Raises InvalidShape for what is no convolution or linear layer, and NonFinite,
    naming the kernel by `name`.
    """
    geometry, kernel = geometry_of(layer), kernel_of(layer, name)
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    found: FactorisedLayer | None
    if config.reference and geometry.kernel:
        found = ring_layer(geometry, paper_ring(kernel, geometry, config.eps), bias)
    else:
        shape, spectra = smallest(kernel, geometry, config, spatial)
        found = None if shape is None else _layer(geometry, shape, spectra, bias)
    return found if found is None else found.to(kernel).train(layer.training)


def ring_layer(geometry: Geometry, ring: TensorRing, bias: Tensor | None) -> RingConv:
    """A ring's layer, by cores of equal norm."""
    return RingConv(geometry, ring.balanced(), bias)


def _layer(
    geometry: Geometry, shape: RingShape | LowRankShape, spectra: Spectra, bias: Tensor | None
) -> FactorisedLayer:
    if isinstance(shape, RingShape):
        return ring_layer(geometry, ring_of(spectra, shape), bias)
    kind = LowRankConv if geometry.kernel else LowRankLinear
    return kind(geometry, shape, low_rank_of(spectra, shape), bias)
