"""Sampling strategies: which voxels a volume is read at, and what is made of their features.

A new strategy is one class here, and one for what it chooses: `voxels`, and their `moments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Float64
from torch import Tensor

from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.moments import Pooling, pooled_moments
from models.cpic.random_voxels import RandomVoxels
from models.types import Int64


class Chosen(Protocol):
    """What one volume is read at: a step encodes `voxels`, with gradients, and takes `moments` of that."""

    @property
    def voxels(self) -> Int64:
        """Linear indices (z Y + y) X + x, (m,): ascending and distinct, each to be encoded once."""

    def moments(self, values: Float[Tensor, "m f"]) -> Float64[Tensor, " n"]:
        """The volume's features from those of its voxels, in their order. Differentiable."""


class Strategy(Protocol):
    """How voxels are chosen."""

    def choose(self, volume: EncodedVoxels, seed: int, previous: Chosen | None = None) -> Chosen:
        """What to read a volume at; `previous` is what this strategy chose in it for earlier weights."""


@dataclass(frozen=True)
class Randomly:
    """`count` voxels drawn anew each time; see `RandomVoxels.drawn`."""

    count: int
    pooling: Pooling
    strata: int = 1
    self_normalised: bool = False

    def choose(self, volume: EncodedVoxels, seed: int, previous: Chosen | None = None) -> RandomVoxels:
        """Voxels that depend on the seed and the shape alone."""
        return RandomVoxels.drawn(
            volume.scan.shape,
            self.count,
            seed,
            self.pooling,
            strata=self.strata,
            self_normalised=self.self_normalised,
        )


@dataclass(frozen=True, eq=False)
class PooledFibres:
    """Fibres, of whose train the pooled moments are taken."""

    fibres: Fibres
    pooling: Pooling

    @property
    def voxels(self) -> Int64:
        """Linear indices (z Y + y) X + x, (m,)."""
        return self.fibres.voxels

    def moments(self, values: Float[Tensor, "m f"]) -> Float64[Tensor, " n"]:
        """(B^3 features,): features of one moment side by side."""
        return pooled_moments(self.fibres.train(values), self.fibres.layout, self.pooling).flatten()


@dataclass(frozen=True)
class ByFibres:
    """The fibres of a cross-approximation: cold at first, then one half-sweep from what was chosen before."""

    config: FibreConfig
    pooling: Pooling

    def choose(self, volume: EncodedVoxels, seed: int, previous: Chosen | None = None) -> PooledFibres:
        """Voxels of fibres; looking for them encodes voxels, without a gradient."""
        if isinstance(previous, PooledFibres):
            return PooledFibres(previous.fibres.refreshed(volume, seed), self.pooling)
        return PooledFibres(Fibres.choose(volume, self.config, seed), self.pooling)
