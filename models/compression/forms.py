"""The forms that a layer may take, and the layer in that form: for a plan, and for carrying it out."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from models.convolutions import geometry_of, kernel_of
from models.errors import InvalidConfig, InvalidShape
from models.rsdtr.candidates import paper_ring
from models.rsdtr.canonical import CanonicalPath, CanonicalShape
from models.rsdtr.canonical_layer import CanonicalConv, balanced
from models.rsdtr.factorise import ring_layer
from models.rsdtr.layers import REBUILD, FactorisedLayer, LowRankConv, LowRankLinear
from models.rsdtr.low_rank import LowRankShape, blocks_of, low_rank_of
from models.rsdtr.metric import KernelMetric
from models.rsdtr.ring import RingShape
from models.rsdtr.search import ring_of
from models.rsdtr.spectra import Spectra
from models.sttp.apply import attach_
from models.sttp.lowrank import executing_class
from models.sttp.parametrizations import Spectral, spectral_of
from models.sttp.spectrum import Spectrum
from models.sttp.weights import weight_shape

RING, PAPER, LOW_RANK, CANONICAL = "ring", "paper-ring", "low-rank", "canonical"
SVDP, STTP = "svdp", "sttp"
METHODS = (RING, PAPER, LOW_RANK, CANONICAL, SVDP, STTP)

Shape = RingShape | LowRankShape | CanonicalShape


@dataclass(frozen=True)
class Form:
    """How a layer is factorised, without numbers.

    `modes` and `ranks` are those of a ring. Of a sum of terms `ranks` is their number, of an SVD its only
    rank, and `late` the spatial axes of its second factor; of a spectral weight the largest rank of any bond.
    `eps` is what the form was searched by. `execution` is a plan of `FactorisedLayer`, or of spectral weights
    one of `models.sttp.lowrank.EXECUTIONS`. Raises InvalidConfig, naming the setting, for what no form has.
    """

    method: str
    ranks: tuple[int, ...]
    modes: tuple[tuple[int, ...], ...] = ()
    late: tuple[int, ...] = ()
    eps: float | None = None
    execution: str = REBUILD
    spectrum: str | None = None
    bound: float | None = None
    flatten_kernel: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidConfig("method", self.method, f"one of {', '.join(METHODS)}")
        if not self.ranks or any(type(rank) is not int or rank < 1 for rank in self.ranks):
            raise InvalidConfig("ranks", self.ranks, "whole numbers, each at least 1")
        if any(
            type(axis) is not int for axis in (*self.late, *(axis for mode in self.modes for axis in mode))
        ):
            raise InvalidConfig("modes", (self.modes, self.late), "axes, as whole numbers")
        if self.eps is not None and not 0 < self.eps < float("inf"):
            raise InvalidConfig("eps", self.eps, "above 0 and finite")

    def shape(self, sizes: tuple[int, ...]) -> Shape:
        """Of the factors of one group's kernel; not of a spectral weight."""
        if self.method == CANONICAL:
            return CanonicalShape(sizes, self.ranks[0])
        if self.method == LOW_RANK:
            return LowRankShape(sizes, self.late, self.ranks[0])
        return RingShape(sizes, self.modes, self.ranks)


@torch.no_grad()
def formed(
    layer: nn.Module, form: Form, name: str = "the layer", metric: KernelMetric | None = None
) -> nn.Module:
    """A layer in this form, which shares nothing with the one given; dtype, device, modes are those of it.

    `metric` is the one that rings and SVDs were searched in, by default that of Frobenius. Raises NonFinite,
    naming the layer, for a weight that is not finite, and InvalidShape for another form.
    """
    kernel = kernel_of(layer, f"the weight of {name}")
    made = _spectral(layer, form) if form.method in (SVDP, STTP) else _factorised(layer, form, kernel, metric)
    learnt = cast(Tensor, layer.weight).requires_grad
    for inner, parameter in made.named_parameters():
        own = cast(Tensor, layer.bias) if inner == "bias" else None
        parameter.requires_grad_(learnt if own is None else own.requires_grad)
    return made.train(layer.training)


@torch.no_grad()
def relative_error(layer: nn.Module, other: nn.Module) -> float:
    """||W - W^|| / ||W||, in float64, of a plain layer and another form of it; 0 for a zero met exactly."""
    weight = kernel_of(layer).to("cpu", torch.float64)
    distance = torch.linalg.vector_norm(weight - dense_kernel(other).to("cpu", torch.float64))
    norm = torch.linalg.vector_norm(weight)
    return float(distance / norm) if norm > 0 else float(distance)


@torch.no_grad()
def dense_kernel(layer: nn.Module) -> Tensor:
    """(O, I / groups, *k) of a layer in any form."""
    return layer.kernel() if isinstance(layer, FactorisedLayer) else kernel_of(layer)


def in_form(layer: nn.Module, form: Form) -> bool:
    """Whether a layer is in this form already, whatever its numbers."""
    if form.method in (SVDP, STTP):
        spectral = spectral_of(layer)
        settings = (form.method, form.ranks[0], form.spectrum, form.flatten_kernel)
        return spectral is not None and settings == (
            spectral.method,
            spectral.rank,
            spectral.spectrum,
            spectral.flatten_kernel,
        )
    if not isinstance(layer, FactorisedLayer):
        return False
    return bool(layer.shape == form.shape(layer.geometry.block_shape))


def _factorised(layer: nn.Module, form: Form, kernel: Tensor, metric: KernelMetric | None) -> nn.Module:
    geometry = geometry_of(layer)
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    made: FactorisedLayer
    if form.eps is None:
        raise InvalidConfig("eps", None, "the error that a ring or an SVD was searched by")
    if form.method == PAPER:
        made = ring_layer(geometry, paper_ring(kernel, geometry, form.eps), bias)
    else:
        blocks = blocks_of(kernel.to("cpu", torch.float64), geometry)
        arrays = blocks if metric is None else metric.weighted(blocks)
        spectra = Spectra(arrays, form.eps)
        shape = form.shape(geometry.block_shape)
        _refuse_unreachable(shape)
        if isinstance(shape, RingShape):
            ring = ring_of(spectra, shape)
            made = ring_layer(geometry, ring if metric is None else metric.ring(ring), bias)
        elif isinstance(shape, CanonicalShape):
            terms = CanonicalPath(arrays).factors(shape.rank)
            made = CanonicalConv(
                geometry, shape, balanced(terms if metric is None else metric.canonical(terms)), bias
            )
        else:
            factors = low_rank_of(spectra, shape)
            kind = LowRankConv if geometry.kernel else LowRankLinear
            made = kind(geometry, shape, factors if metric is None else metric.low_rank(shape, factors), bias)
    made.plan = form.execution
    return made.to(kernel)


def _refuse_unreachable(shape: Shape) -> None:
    """Raise InvalidShape for ranks above those of the matrices that the factors are cut off."""
    if isinstance(shape, CanonicalShape):
        return
    if isinstance(shape, LowRankShape):
        rows = prod(shape.out_shape) // shape.rank
        most = [min(rows, prod(shape.sizes) // rows)]
        ranks = [shape.rank]
    else:
        start, *others = shape.ranks
        ranks, most = [start * others[0], *others[1:]], []
        rest = prod(shape.sizes)
        for length, left in zip(shape.lengths, (1, *others), strict=False):
            rest //= length
            most.append(min(left * length, rest if not most else rest * start))
    if any(rank > limit for rank, limit in zip(ranks, most, strict=False)):
        raise InvalidShape(f"{shape} has ranks above {most}, which its matrices have")


def _spectral(layer: nn.Module, form: Form) -> nn.Module:
    made = deepcopy(layer)
    spectral = Spectral(
        weight_shape(layer),
        form.method,
        form.ranks[0],
        spectrum=cast(Spectrum, form.spectrum),
        bound=form.bound,
        flatten_kernel=form.flatten_kernel,
    )
    attach_(made, spectral, executing_class(layer, spectral, form.execution))
    return made
