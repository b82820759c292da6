"""The smallest form of one layer within an error, for any error: the spectra are factorised once for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from models.compression.forms import CANONICAL, LOW_RANK, PAPER, RING, Form, Shape
from models.compression.tracing import Calls
from models.convolutions import Geometry, geometry_of, kernel_of
from models.rsdtr.candidates import RingConfig, paper_ring
from models.rsdtr.canonical import CanonicalPath, CanonicalShape
from models.rsdtr.cuts import Tails
from models.rsdtr.low_rank import blocks_of, low_rank_shapes
from models.rsdtr.metric import KernelMetric
from models.rsdtr.ring import RingShape
from models.rsdtr.search import RingSearch, groupings
from models.rsdtr.spectra import Arrays, Spectra
from models.rsdtr.steps import OUT, SPATIAL, Step, best_steps, cost_of, nominal

TINY = 1e-300
"""What nothing is divided by in the place of 0."""


@dataclass(frozen=True)
class Choice:
    """A form of a layer, None for dense; numbers of its kernel, MACs of its factors, its squared error.

    The error is relative, in a curvature's metric absolute: the estimated squared change of the answers. That
    of a ring is the one that it was searched by: no less than its own.
    """

    form: Form | None
    storage: int
    macs: int
    error2: float


class _KnownSpectra(Spectra):
    """Spectra whose tails are those of earlier ones of the same arrays; bases are made anew, and let go."""

    def __init__(self, arrays: Arrays, eps: float, known: dict[frozenset[int], Tails]) -> None:
        super().__init__(arrays, eps)
        self._tails = known


class LayerSearch:
    """The choices of one layer: `dense`, `at` an error, and `raised` ranks of plain SVDs.

    None but `reference` takes more storage or MACs than dense. `energy` is what errors are multiples of: 1
    where they are relative.
    """

    def __init__(
        self,
        layer: nn.Module,
        calls: Calls,
        config: RingConfig,
        name: str,
        metric: KernelMetric | None = None,
    ) -> None:
        self.name, self.geometry = name, geometry_of(layer)
        self.item_size = kernel_of(layer).element_size()
        self._calls, self._config = calls, config
        self._kernel = kernel_of(layer, f"the weight of {name}")
        self._metric = metric
        self._norm2 = float(self._blocks().square().sum())
        self.energy = 1.0 if metric is None else self._norm2
        self._tails: dict[frozenset[int], Tails] = {}
        macs = sum(call.times * self.geometry.macs(call.spatial) for call in calls)
        self.dense = Choice(None, self.geometry.parameters(), macs, 0.0)
        self._found: dict[float, Choice] = {}
        self._path: CanonicalPath | None = None

    def at(self, eps: float) -> Choice:
        """The smallest within this relative error."""
        if eps not in self._found:
            paper = self._config.reference and self.geometry.kernel
            self._found[eps] = self._paper(eps) if paper else self._smallest(eps)
        return self._found[eps]

    def raised(self, choice: Choice) -> Choice | None:
        """A plain SVD with a rank more; None of other choices, and where dense is no larger."""
        if choice.form is None or choice.form.method != LOW_RANK:
            return None
        form = replace(choice.form, ranks=(choice.form.ranks[0] + 1,))
        made = self._choice(form, self._low_rank_error(form))
        return made if self._fits(made.storage, made.macs) else None

    def _terms(self) -> CanonicalPath:
        """Of the kernels, kept: each error goes on from where the one before ended."""
        if self._path is None:
            self._path = CanonicalPath(self._blocks())
        return self._path

    def _smallest(self, eps: float) -> Choice:
        spectra, groups = _KnownSpectra(self._blocks(), eps, self._tails), self.geometry.groups
        best, limit = self.dense, self.dense.storage // groups
        for shape in low_rank_shapes(spectra) if self._config.low_rank else ():
            if shape.storage < limit and self._macs(shape) <= self.dense.macs:
                form = Form(LOW_RANK, (shape.rank,), late=shape.late, eps=eps)
                best, limit = self._choice(form, self._low_rank_error(form)), shape.storage
        if self._config.canonical and prod(self.geometry.kernel) > 1:
            rank = self._terms().rank(spectra.allowed)
            terms = None if rank is None else CanonicalShape(self.geometry.block_shape, rank)
            if terms is not None and terms.storage < limit and self._macs(terms) <= self.dense.macs:
                error2 = self.energy * self._terms().error2(terms.rank) / max(self._norm2, TINY)
                best = self._choice(Form(CANONICAL, (terms.rank,), eps=eps), error2)
                limit = terms.storage
        search = RingSearch(spectra, limit, lambda ring: self._macs(ring) <= self.dense.macs)
        for modes in groupings(spectra.sizes):
            if len(modes) in self._config.modes:
                search.over(modes)
        if search.found is None:
            return best
        return self._choice(Form(RING, search.found.ranks, search.found.modes, eps=eps), self.energy * eps**2)

    def _blocks(self) -> Tensor:
        """The kernels of the groups, weighted by the metric; made anew each time: they may be large."""
        blocks = blocks_of(self._kernel.to("cpu", torch.float64), self.geometry)
        return blocks if self._metric is None else self._metric.weighted(blocks)

    def _paper(self, eps: float) -> Choice:
        shape = paper_ring(self._kernel, self.geometry, eps).shape
        return self._choice(Form(PAPER, shape.ranks, shape.modes, eps=eps), eps**2)

    def _choice(self, form: Form, error2: float) -> Choice:
        shape = form.shape(self.geometry.block_shape)
        return Choice(form, self.geometry.groups * shape.storage, self._macs(shape), error2)

    def _fits(self, storage: int, macs: int) -> bool:
        return storage < self.dense.storage and macs <= self.dense.macs

    def _low_rank_error(self, form: Form) -> float:
        """By the tails that its own search has left."""
        axes = frozenset(range(len(self.geometry.block_shape)))
        left_out = self._tails[axes - {OUT, *(SPATIAL + axis for axis in form.late)}].left_out(form.ranks[0])
        return self.energy * left_out / self._norm2 if self._norm2 else 0.0

    def _macs(self, shape: Shape) -> int:
        """Of the layer's own plan of the fewest."""
        return min(
            sum(call.times * cost_of(self.geometry, steps, call.spatial).macs for call in self._calls)
            for steps in _executions(self.geometry, shape)
        )


def _executions(geometry: Geometry, shape: Shape) -> list[tuple[Step, ...]]:
    if not isinstance(shape, RingShape):
        return [shape.steps()]
    sides = nominal(geometry)
    return [best_steps(geometry, shape, sides, merged=merged)[0] for merged in (False, True)]
