"""Cross-approximation: choose the fibres that the rest of the tensor is interpolated from. No gradient here.

Alternating half-sweeps (Oseledets & Tyrtyshnikov, TT-cross approximation, 2010): with the suffixes K_k held,
a pass from left to right looks at V_k = E(J_{k-1} x [n_k] x K_k), takes rows of maximal volume of its left
unfolding, and their (prefix, index) pairs become J_k; then the same from right to left.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from models.cpic.index_sets import TRIVIAL, IndexSets, block, feasible_ranks
from models.errors import InvalidShape
from models.tt.maxvol import RANK_TOLERANCE, maxvol
from models.tt.qtt import Layout
from models.types import Int64, Report

Sample = Callable[[Int64], Float64[Tensor, "..."]]
"""Keys of any shape to the tensor's entries in the same shape."""


def ignore(phase: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def cross(
    sample: Sample,
    layout: Layout,
    start: IndexSets,
    *,
    sweeps: int = 2,
    seed: int = 0,
    rank_tolerance: float = RANK_TOLERANCE,
    report: Report = ignore,
) -> IndexSets:
    """Nested index sets of the sizes of `start`, whose suffixes they are found from.

    Half-sweeps LR, then RL and LR for each further sweep: a cold start needs two sweeps; earlier sets (of the
    same scan, or of one like it) need one. Where the samples at a bond have a lower rank than the bond, the
    places that maxvol leaves are taken by random rows (`seed`): an unlucky start in empty space is left
    behind, and `interpolate` cuts what remains without meaning. Singular values below `rank_tolerance` times
    the largest count as zero.
    Raises InvalidShape for sizes that a bond cannot carry.
    """
    if sweeps < 1:
        raise InvalidShape(f"cross-approximation needs at least one sweep, not {sweeps}")
    for bond, (asked, most) in enumerate(
        zip(start.ranks, feasible_ranks(layout.modes, start.ranks), strict=True)
    ):
        if asked > most:
            raise InvalidShape(f"bond {bond}: {asked} suffixes, but it can carry a rank of {most} at most")
    generator = np.random.default_rng(seed)
    steps = count(1)

    def choose(V: Float64[Tensor, "n r"]) -> Int64:
        rows = _rows(V, rank_tolerance, generator)
        report("sampling", next(steps), (2 * sweeps - 1) * len(start.right))
        return rows

    sets = _rightward(sample, layout, start, choose)
    for _ in range(sweeps - 1):
        sets = _rightward(sample, layout.mirrored(), sets.mirrored(), choose).mirrored()
        sets = _rightward(sample, layout, sets, choose)
    return sets


def _rightward(
    sample: Sample, layout: Layout, sets: IndexSets, choose: Callable[[Float64[Tensor, "n r"]], Int64]
) -> IndexSets:
    """One half-sweep: J_k = the chosen (prefix, index) pairs of J_{k-1} x [n_k], from left to right."""
    prefixes, left = TRIVIAL, []
    for core, suffixes in enumerate(sets.right):
        V = sample(block(prefixes, layout.digits(core), suffixes))
        pairs = prefixes[:, None] + layout.digits(core)
        prefixes = pairs.ravel()[choose(V.reshape(pairs.size, -1))]
        left.append(prefixes)
    return IndexSets(tuple(left), sets.right)


def _rows(V: Float64[Tensor, "n r"], rank_tolerance: float, generator: np.random.Generator) -> Int64:
    """r rows: those of maximal volume, and random ones where the rank is lower than r."""
    rows = maxvol(V, rank_tolerance=rank_tolerance).rows
    if (missing := V.shape[1] - len(rows)) == 0:
        return rows
    others = np.setdiff1d(np.arange(len(V)), rows)
    return np.concatenate([rows, generator.permutation(others)[:missing]])
