"""Cross-approximation: choose the fibres that the rest of the tensor is made from. No gradient here.

Alternating half-sweeps (Oseledets & Tyrtyshnikov, TT-cross approximation, 2010): with the suffixes K_k held,
a pass from left to right looks at V_k = E(J_{k-1} x [n_k] x K_k), takes rows of maximal volume of its left
unfolding, and their (prefix, index) pairs become J_k; then the same from right to left.

Two things go beyond that, and cost no more code. *Block* cross-approximation: a sample may be a vector, all
features of a voxel; prefixes and suffixes are then of voxels alone, and the features are further columns of
the unfolding, in both directions. *Oversampling*: sets may be larger than the rank; rows are then those of a
rectangular maxvol on the leading directions of V_k, and cores are fitted to all samples by least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.index_sets import TRIVIAL, IndexSets, block, feasible_ranks, prefix_counts
from models.errors import InvalidShape, NonFiniteSample
from models.tt.maxvol import RANK_TOLERANCE, dominant_rows
from models.tt.qtt import Layout
from models.types import Int64, Report

Sample = Callable[[Int64], Float64[Tensor, "..."]]
"""Keys of any shape to entries in the same shape, or with one more axis: all features of a voxel."""


Choose = Callable[[Tensor, int], Int64]
"""An unfolding (..., n, m) and a number to that many of its rows, (..., number), or to fewer."""


def ignore(phase: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def cross(
    sample: Sample,
    layout: Layout,
    start: IndexSets,
    *,
    rank: int | None = None,
    sweeps: int = 2,
    seed: int = 0,
    rank_tolerance: float = RANK_TOLERANCE,
    report: Report = ignore,
) -> IndexSets:
    """Nested index sets from the suffixes of `start`, and of their sizes; of vectors see `prefix_counts`.

    Half-sweeps LR, then RL and LR for each further sweep: a cold start needs two sweeps where samples are
    numbers; vectors, and earlier sets (of the same scan, or of one like it), need one. `rank` is the rank
    that is aimed at: smaller than the sizes where bonds are oversampled, and equal to them if it is not
    given. For batched sets the leading axes of the sampled keys are the batch's, and everything is found for
    all volumes together, each as if it were alone.
    Where the samples at a bond have a lower rank than the bond, the places left over are taken by random rows
    (`seed`): an unlucky start in empty space is left behind, and interpolation cuts what remains without
    meaning. Singular values below `rank_tolerance` times the largest count as zero.
    Raises InvalidShape for sizes that a bond cannot carry, and NonFiniteSample.
    """
    if sweeps < 1:
        raise InvalidShape(f"cross-approximation needs at least one sweep, not {sweeps}")
    for bond, (asked, most) in enumerate(
        zip(start.sizes, feasible_ranks(layout.modes, start.sizes), strict=True)
    ):
        if asked > most:
            raise InvalidShape(f"bond {bond}: {asked} suffixes, but it can carry a rank of {most} at most")
    size = max(*start.sizes, rank or 1, 1)
    steps, total = count(1), (2 * sweeps - 1) * len(start.right)
    choose = Chooser(
        rank, rank_tolerance, np.random.default_rng(seed), lambda: report("sampling", next(steps), total)
    )
    sets = rightward(sample, layout, start, choose, size)
    for _ in range(sweeps - 1):
        sets = leftward(sample, layout, sets, choose)
        sets = rightward(sample, layout, sets, choose, size)
    return sets


@dataclass(frozen=True)
class Chooser:
    """How rows are chosen from an unfolding; `stepped` is called after each."""

    rank: int | None
    rank_tolerance: float
    generator: np.random.Generator
    stepped: Callable[[], None]

    def __call__(self, V: Float64[Tensor, "*batch n m"], size: int) -> Int64:
        """`size` rows of maximal volume, (..., size)."""
        rank = size if self.rank is None else min(self.rank, size)
        noise = torch.from_numpy(self.generator.standard_normal((V.shape[-2], rank)))
        rows = dominant_rows(V, size, rank=rank, rank_tolerance=self.rank_tolerance, noise=noise)
        self.stepped()
        return rows


def rightward(
    sample: Sample, layout: Layout, sets: IndexSets, choose: Choose, size: int | None = None
) -> IndexSets:
    """One half-sweep from left to right: prefixes J_k, as many as `prefix_counts` says."""

    def counts(features: int) -> tuple[int, ...]:
        return prefix_counts(layout.modes, sets.sizes, features, size)

    return IndexSets(_half_sweep(sample, layout, sets, counts, choose), sets.right)


def leftward(sample: Sample, layout: Layout, sets: IndexSets, choose: Choose) -> IndexSets:
    """One half-sweep from right to left: suffixes K_k, as many as prefixes J_k where there are so many."""
    mirrored = sets.mirrored()
    suffixes = _half_sweep(sample, layout.mirrored(), mirrored, lambda _: mirrored.sizes, choose)
    return IndexSets(suffixes, mirrored.right).mirrored()


def _half_sweep(
    sample: Sample,
    layout: Layout,
    sets: IndexSets,
    counts: Callable[[int], tuple[int, ...]],
    choose: Choose,
) -> tuple[Int64, ...]:
    """J_k = the chosen (prefix, index) pairs of J_{k-1} x [n_k]; how many, `counts` says for c features."""
    prefixes, left = np.broadcast_to(TRIVIAL, (*sets.batch, 1)), []
    wanted: tuple[int, ...] = ()
    for core, suffixes in enumerate(sets.right):
        digits = layout.digits(core)
        keys = block(prefixes, digits, suffixes)
        V = looked_at(sample, keys, layout)
        pairs = (prefixes[..., :, None] + digits).reshape(*sets.batch, -1)
        wanted = wanted or counts(V.numel() // keys.size)
        rows = choose(V.reshape(*pairs.shape, -1), min(wanted[core], pairs.shape[-1]))
        prefixes = np.take_along_axis(pairs, rows, axis=-1)
        left.append(prefixes)
    return tuple(left)


def looked_at(sample: Sample, keys: Int64, layout: Layout) -> Tensor:
    """The samples at keys. Raises NonFiniteSample, naming the voxel."""
    values = sample(keys)
    if not bool(torch.isfinite(values.sum())) and not bool((finite := torch.isfinite(values)).all()):
        at = int(finite.reshape(keys.size, -1).all(dim=1).int().argmin())
        entry = layout.entries(keys.reshape(-1)[at : at + 1])[0]
        bad = values.reshape(keys.size, -1)[at]
        raise NonFiniteSample(tuple(entry[:3].tolist()), float(bad[~torch.isfinite(bad)][0]))
    return values
