"""The fibres of one volume: which voxels a train is made from, and the train that their features make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.cpic.adaptive import AdaptiveConfig, adaptive_cross
from models.cpic.cross import Chooser, cross, ignore, leftward, rightward
from models.cpic.field import BlockField, EncodedVoxels, Field, SampledField
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, random_start
from models.errors import InvalidConfig, InvalidShape
from models.keys import distinct
from models.limits import refuse_outside
from models.tt.qtt import LAYOUTS, ORDERS, Layout, make_layout
from models.tt.train import TensorTrain
from models.types import Int64, Report

SAMPLINGS = ("block", "scalar")
FIRST_RANK = 4
"""Where ranks are found for a tolerance, they grow from this."""


@dataclass(frozen=True)
class FibreConfig:
    """How fibres are chosen. Raises InvalidConfig, naming the setting.

    `order` matters for the layout `qtt` only. `sampling` is `block` (all features of a voxel are used
    together) or `scalar` (each entry on its own, as in the paper). `rank` is a cap: bonds that carry less
    have less. `oversampling` is the size of index sets over the rank: 1 is interpolation, which suits smooth
    fields; 2 is a least-squares fit, which rough ones need. With a `tolerance`, ranks up to `rank` are found
    for it; where there are none, fibres are chosen as without it.
    """

    layout: str = "qtt"
    order: str = "sequential"
    sampling: str = "block"
    rank: int = 10
    oversampling: float = 2.0
    sweeps: int = 1
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for setting, table in (("layout", LAYOUTS), ("order", ORDERS), ("sampling", SAMPLINGS)):
            if getattr(self, setting) not in table:
                raise InvalidConfig(setting, getattr(self, setting), f"one of {', '.join(table)}")
        refuse_outside(self, rank=(1, 4096), sweeps=(1, 32), oversampling=(1, 8))
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InvalidConfig("tolerance", self.tolerance, "between 0 and 1")

    @property
    def set_size(self) -> int:
        """Elements of an index set, where its bond carries them."""
        return ceil(self.rank * self.oversampling)

    @property
    def adaptive(self) -> AdaptiveConfig:
        """How ranks are found, where there is a tolerance."""
        return AdaptiveConfig(tolerance=self.tolerance or 1e-6, max_rank=self.rank)

    def train_layout(self, shape: tuple[int, int, int], features: int) -> Layout:
        """The layout of a volume's train."""
        whole = self.sampling == "block"
        return make_layout(self.layout, shape, features, self.order, whole_features=whole)

    def in_blocks(self, layout: Layout) -> bool:
        """Whether samples are vectors: with one feature, or one voxel, there is nothing to take together."""
        return self.sampling == "block" and layout.features > 1 and layout.voxels > 1

    def sampled_layout(self, layout: Layout) -> Layout:
        """What index sets are of: voxels alone, or all entries."""
        return layout.spatial() if self.in_blocks(layout) else layout


@dataclass(frozen=True, eq=False)
class Fibres:
    """Fibres that were chosen in one volume. Make them with `choose`.

    `voxels` (m,) are the voxels that the forward set reads, linear, ascending and distinct; `reads`
    says for each of its keys which of them, and which feature. `rightward` says which way the last half-sweep
    went, `converged` whether ranks were found for a tolerance.
    """

    config: FibreConfig
    layout: Layout
    sets: IndexSets
    forward: ForwardSet
    voxels: Int64
    reads: tuple[Int64, Int64]
    rightward: bool
    converged: bool | None
    rank_tolerance: float

    @classmethod
    def choose(
        cls,
        volume: EncodedVoxels,
        config: FibreConfig,
        seed: int,
        *,
        field: Field | None = None,
        report: Report = ignore,
    ) -> Fibres:
        """Fibres of a volume, from a random start. `field` counts what is looked at, if it is given."""
        encoder = volume.scan.encoder
        layout = config.train_layout(volume.scan.shape, encoder.features)
        field = field_of(volume, config, layout) if field is None else field
        start_seed, cross_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
        if config.tolerance is not None:
            start = random_start(field.layout, min(config.rank, FIRST_RANK), start_seed)
            found = adaptive_cross(
                field,
                field.layout,
                start,
                config.adaptive,
                seed=cross_seed,
                rank_tolerance=encoder.rank_tolerance,
                report=report,
            )
            if found.converged:
                return cls._of(field, config, layout, found.sets, rightward=False, converged=True)
        sets = cross(
            field,
            field.layout,
            random_start(field.layout, config.set_size, start_seed),
            rank=config.rank,
            sweeps=config.sweeps,
            seed=cross_seed,
            rank_tolerance=encoder.rank_tolerance,
            report=report,
        )
        converged = None if config.tolerance is None else False
        return cls._of(field, config, layout, sets, rightward=True, converged=converged)

    def refreshed(self, volume: EncodedVoxels, seed: int, *, field: Field | None = None) -> Fibres:
        """The fibres after one more half-sweep, back the way that the last one came.

        For when the encoder's weights have moved a little: it looks at little more than its own forward set.
        Raises InvalidShape for a volume of another shape.
        """
        if volume.scan.shape != self.layout.shape[:3]:
            raise InvalidShape(
                f"fibres of a volume of {self.layout.shape[:3]} do not fit {volume.scan.shape}"
            )
        field = field_of(volume, self.config, self.layout) if field is None else field
        generator = np.random.default_rng(seed)
        choose = Chooser(self.config.rank, self.rank_tolerance, generator, lambda: None)
        half_sweep = leftward if self.rightward else rightward
        sets = half_sweep(field, field.layout, self.sets, choose)
        turned = not self.rightward
        return self._of(field, self.config, self.layout, sets, rightward=turned, converged=self.converged)

    def train(
        self, values: Float[Tensor, "m f"], *, stepped: Callable[[], None] = lambda: None
    ) -> TensorTrain:
        """The train that the features of `voxels` make, differentiable in them. `stepped`: see `train_of`."""
        where, feature = (torch.from_numpy(each).to(values.device) for each in self.reads)
        sampled = values.double()[where]
        if not self.config.in_blocks(self.layout):
            sampled = sampled.gather(1, feature[:, None])[:, 0]
        return train_of(
            sampled, self.forward, self.config.rank, rank_tolerance=self.rank_tolerance, stepped=stepped
        )

    @classmethod
    def _of(
        cls,
        field: Field,
        config: FibreConfig,
        layout: Layout,
        sets: IndexSets,
        *,
        rightward: bool,
        converged: bool | None,
    ) -> Fibres:
        forward = ForwardSet.of(field.layout, sets)
        field(forward.keys)  # what the sweeps did not see of it is encoded, and counted, with the rest
        read, features = field.reads(forward.keys)
        voxels = distinct(read)
        return cls(
            config=config,
            layout=layout,
            sets=sets,
            forward=forward,
            voxels=voxels,
            reads=(np.searchsorted(voxels, read), features),
            rightward=rightward,
            converged=converged,
            rank_tolerance=field.encoded.scan.encoder.rank_tolerance,
        )


def field_of(volume: EncodedVoxels, config: FibreConfig, layout: Layout) -> Field:
    """The field that fibres are chosen in."""
    make = BlockField if config.in_blocks(layout) else SampledField
    return make(volume, config.sampled_layout(layout))
