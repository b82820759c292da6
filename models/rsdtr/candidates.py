"""Of the factorisations of a kernel within an error, the smallest that costs no more than dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from models.convolutions import Geometry
from models.errors import InvalidConfig, refuse_non_finite
from models.rsdtr.cuts import refuse_eps
from models.rsdtr.low_rank import LowRankShape, blocks_of, low_rank_shapes
from models.rsdtr.reference import reference_ring
from models.rsdtr.ring import RingShape, TensorRing
from models.rsdtr.search import RingSearch, groupings
from models.rsdtr.spectra import Spectra
from models.rsdtr.steps import best_steps, cost_of, nominal

MODES = (3, 4, 5)


@dataclass(frozen=True)
class RingConfig:
    """`eps` bounds ||W - W^|| / ||W||, the Frobenius norm's relative error of a layer's kernel.

    `modes` are the numbers of modes that rings are tried with, `low_rank` says whether plain SVDs are tried,
    `canonical` whether sums of rank-one terms are: for these a search descends, which takes its time.
    Unless `reference` asks for the paper's search, what takes more storage or MACs than dense stays dense.
    Raises InvalidConfig, naming the setting.
    """

    eps: float = 0.5
    modes: tuple[int, ...] = field(default=MODES)
    low_rank: bool = True
    canonical: bool = False
    reference: bool = False

    def __post_init__(self) -> None:
        refuse_eps(self.eps)
        if any(mode not in MODES for mode in self.modes) or not (self.modes or self.low_rank):
            raise InvalidConfig("modes", self.modes, f"some of {MODES}, or none with low_rank")


def smallest(
    kernel: Float[Tensor, "o i *k"],
    geometry: Geometry,
    config: RingConfig,
    spatial: tuple[int, ...] | None = None,
) -> tuple[RingShape | LowRankShape | None, Spectra]:
    """The smallest factorisation of a kernel, None where dense is; and the spectra to make its factors of.

    `spatial` are the sizes of the layer's inputs, for MACs. Raises NonFinite.
    """
    refuse_non_finite(kernel, "a kernel")
    blocks = blocks_of(kernel.detach().to("cpu", torch.float64), geometry)
    sides = spatial or nominal(geometry)
    spectra, most = Spectra(blocks, config.eps), geometry.macs(sides)
    best: LowRankShape | None = None
    limit = prod(geometry.block_shape)
    if config.low_rank:
        for shape in low_rank_shapes(spectra):
            if shape.storage < limit and cost_of(geometry, shape.steps(), sides).macs <= most:
                best, limit = shape, shape.storage
    search = RingSearch(spectra, limit, lambda ring: fewest_macs(geometry, ring, sides) <= most)
    for modes in groupings(spectra.sizes):
        if len(modes) in config.modes:
            search.over(modes)
    return search.found or best, spectra


def fewest_macs(geometry: Geometry, shape: RingShape, spatial: tuple[int, ...]) -> int:
    """Of a ring's execution as convolutions, the better of separable and merged."""
    return min(best_steps(geometry, shape, spatial, merged=merged)[1].macs for merged in (False, True))


def paper_ring(kernel: Float[Tensor, "o i *k"], geometry: Geometry, eps: float) -> TensorRing:
    """The paper's ring of a kernel, whatever it costs."""
    return reference_ring(blocks_of(kernel.detach().cpu(), geometry), eps)
