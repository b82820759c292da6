"""Cross-approximation that finds its own ranks, and looks for its own errors.

A cross-approximation knows only what its fibres show it. Where they miss something (a kink, a small object),
sweeps can settle on a train that agrees with every sample that it ever saw, and is wrong elsewhere. Against
that, each round

1. looks at entries of the *superblocks* J_{k-1} x [n_k] x [n_{k+1}] x K_{k+1}, on which T differs from E by
   what bond k alone leaves out: so they say which bonds have to grow (the local error of a two-site update;
   Savostyanov & Oseledets 2011);
2. looks for the worst entries of the whole tensor, by ascending |T - E| one index at a time, from random
   entries and from the worst ones known (a global pivot search; Nunez Fernandez et al. 2025);
3. widens the suffixes by those of both kinds of pivots, and by a few random ones, sweeps, and cuts each bond
   to the rank that its samples have.

It ends when neither search finds an error above the tolerance, twice in a row, the second time in all entries
of the superblocks that are not too large for that. It gives up, and says so, when for several rounds neither
ranks grow nor the error falls: `max_rank` is then not enough, as on data without a low rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cpic.cross import Chooser, Sample, ignore, leftward, looked_at, rightward
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import TRIVIAL, IndexSets, block, feasible_ranks, nested_samples
from models.errors import InvalidConfig, InvalidShape
from models.keys import distinct
from models.tt.maxvol import RANK_TOLERANCE, numerical_rank
from models.tt.qtt import Layout
from models.tt.train import TensorTrain
from models.types import Int64, Report

CLEAN_ROUNDS = 2
"""Rounds in a row that find no error before none is believed."""
STALLED_ROUNDS = 4
"""Rounds in a row with neither larger ranks nor a smaller error before none is expected."""
CUT = 0.1
"""Singular values below this times the tolerance, relative to the largest of their bond, are cut."""


@dataclass(frozen=True)
class AdaptiveConfig:
    """How far to go. `tolerance` is relative to the largest entry that was seen.

    `extra` random suffixes, and at most `pivots` of each kind, widen a bond in one round; superblocks are
    looked at in `probes` entries per bond, and wholly before a train is believed, if they have at most
    `superblock` entries; the worst entry of all is looked for from `searchers` places, trying
    at most `candidates` values of an index at a time. Raises InvalidConfig, naming the setting.
    """

    tolerance: float = 1e-6
    max_rank: int = 64
    rounds: int = 20
    extra: int = 2
    pivots: int = 4
    probes: int = 16
    superblock: int = 50_000
    searchers: int = 48
    candidates: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InvalidConfig("tolerance", self.tolerance, "between 0 and 1")
        for setting, value in vars(self).items():
            least = 0 if setting == "extra" else 1
            if setting != "tolerance" and value < least:
                raise InvalidConfig(setting, value, f"at least {least}")


@dataclass(frozen=True, eq=False)
class Adapted:
    """Index sets, the train made from them, and the largest relative error that the last search found.

    `converged` says whether that is within the tolerance, twice in a row; if not, rounds or ranks ran out,
    or more of them did not help any more.
    """

    sets: IndexSets
    train: TensorTrain
    error: float
    rounds: int
    converged: bool


def adaptive_cross(
    sample: Sample,
    layout: Layout,
    start: IndexSets,
    config: AdaptiveConfig,
    *,
    seed: int = 0,
    rank_tolerance: float = RANK_TOLERANCE,
    report: Report = ignore,
) -> Adapted:
    """Index sets of the ranks that the tensor needs for the tolerance, from the suffixes of `start`.

    Singular values below `rank_tolerance` times the largest of their bond count as zero. `report` is called
    after each step with the phase "adapting" and the rounds done. Raises InvalidShape for batched sets, and
    NonFiniteSample.
    """
    if start.batch:
        raise InvalidShape(f"ranks are found for one volume at a time, not for a batch of {start.batch}")
    generator = np.random.default_rng(seed)
    search = ErrorSearch(sample, layout, config, generator)
    wide, clean, stalled = start, 0, 0
    most, least = 0, float("inf")
    cut = max(CUT * config.tolerance, rank_tolerance)
    for done in range(1, config.rounds + 1):

        def stepped(before: int = done - 1) -> None:
            report("adapting", before, config.rounds)

        sets = _resized(sample, layout, wide, config.max_rank, cut, generator, stepped)
        forward = ForwardSet.of(layout, sets)
        train = train_of(sample(forward.keys), forward, config.max_rank, rank_tolerance=rank_tolerance)
        pivots = []
        for bond in range(len(sets.right)):
            pivots.append(search.superblock(train, sets, bond, clean > 0))
            stepped()
        pivots.append(search.worst(train))
        error = max(found.error for found in pivots)
        clean = clean + 1 if error <= config.tolerance else 0
        stalled = 0 if clean or sum(sets.sizes) > most or error < least else stalled + 1
        most, least = max(most, sum(sets.sizes)), min(least, error)
        report("adapting", done, config.rounds)
        if clean == CLEAN_ROUNDS or stalled == STALLED_ROUNDS:
            break
        wide = _widened(layout, sets, pivots, config, generator)
    return Adapted(sets, train, error, done, clean == CLEAN_ROUNDS)


@dataclass(frozen=True, eq=False)
class Pivots:
    """Entries (m, d) where T and E differ by more than the tolerance, the worst first.

    `error` is the largest that was seen, within the tolerance or not.
    """

    indices: Int64
    error: float


class ErrorSearch:
    """Looks for entries where a train is wrong. Errors are relative to the largest entry that it ever saw."""

    def __init__(
        self, sample: Sample, layout: Layout, config: AdaptiveConfig, generator: np.random.Generator
    ) -> None:
        self._sample, self._layout, self._config, self._generator = sample, layout, config, generator
        self._scale = 0.0
        self._worst = np.empty((0, len(layout.modes)), np.int64)

    def superblock(self, train: TensorTrain, sets: IndexSets, bond: int, thorough: bool) -> Pivots:
        """Entries of J_{k-1} x [n_k] x [n_{k+1}] x K_{k+1}: random ones, or all where that is asked for."""
        parts = (
            sets.prefixes(bond),
            self._layout.digits(bond),
            self._layout.digits(bond + 1),
            sets.suffixes(bond + 1),
        )
        if thorough and prod(len(part) for part in parts) <= self._config.superblock:
            keys = block(parts[0], parts[1], block(TRIVIAL, parts[2], parts[3]).ravel()).ravel()
        else:
            keys = np.sum([self._generator.choice(part, self._config.probes) for part in parts], axis=0)
        points = self._layout.indices(distinct(keys))
        return self._pivots(points, self._errors(train, points))

    def worst(self, train: TensorTrain) -> Pivots:
        """One index at a time to where the error is largest, from random entries and the worst known ones."""
        modes = np.array(self._layout.modes)
        points = self._generator.integers(modes, size=(self._config.searchers, len(modes)))
        points = np.concatenate([self._worst, points])
        errors = self._errors(train, points)
        for core, n in enumerate(self._layout.modes):
            tried = self._candidates(n)
            around = np.repeat(points[:, None], len(tried), axis=1)
            around[:, :, core] = tried
            found = self._errors(train, around.reshape(-1, len(modes))).reshape(len(points), -1)
            best = found.argmax(axis=1)
            better = found.max(axis=1) > errors
            points[better, core] = tried[best[better]]
            errors = np.maximum(errors, found.max(axis=1))
        pivots = self._pivots(points, errors)
        self._worst = pivots.indices
        return pivots

    def _candidates(self, n: int) -> Int64:
        if n <= self._config.candidates:
            return np.arange(n)
        return self._generator.choice(n, self._config.candidates, replace=False)

    def _errors(self, train: TensorTrain, points: Int64) -> NDArray[np.float64]:
        """|T - E| at points (m, d): the largest of a voxel's features."""
        truth = looked_at(self._sample, self._layout.keys(points), self._layout)
        self._scale = max(self._scale, float(truth.abs().max()))
        difference = train.fibres_at(torch.from_numpy(points).to(truth.device)) - truth
        return difference.abs().reshape(len(points), -1).amax(dim=1).cpu().numpy()

    def _pivots(self, points: Int64, errors: NDArray[np.float64]) -> Pivots:
        """The worst of these, each once, as far as they exceed the tolerance."""
        relative = errors / self._scale if self._scale > 0 else errors
        order = np.argsort(-relative, kind="stable")
        worst = order[relative[order] > self._config.tolerance]
        _, first = np.unique(points[worst], axis=0, return_index=True)
        chosen = worst[np.sort(first)[: self._config.pivots]]
        return Pivots(points[chosen], float(relative.max()))


def most_samples(modes: Sequence[int], rank: int, config: AdaptiveConfig) -> int:
    """No run with ranks up to `rank` looks at more entries than this, with repetition."""
    before, behind = accumulate(modes[:-1], mul), [prod(modes[bond + 1 :]) for bond in range(len(modes) - 1)]
    prefixes = [min(rank, most) for most in before]
    suffixes = feasible_ranks(modes, rank)
    widened = 2 * config.pivots + config.extra
    wide = [min(size + widened, most) for size, most in zip(suffixes, behind, strict=True)]
    sweep = nested_samples(modes, prefixes, wide)[0] + 2 * nested_samples(modes, prefixes, suffixes)[0]
    sides = zip((1, *prefixes)[: len(prefixes)], modes[:-1], modes[1:], (*suffixes, 1)[1:], strict=True)
    superblocks = sum(max(config.probes, min(prod(side), config.superblock)) for side in sides)
    ascents = sum(min(n, config.candidates) for n in modes) + 1
    search = (config.searchers + config.pivots) * ascents
    return config.rounds * (sweep + superblocks + search)


def _resized(
    sample: Sample,
    layout: Layout,
    wide: IndexSets,
    max_rank: int,
    cut: float,
    generator: np.random.Generator,
    stepped: Callable[[], None],
) -> IndexSets:
    """A sweep: as many prefixes as the samples' rank, then as many suffixes as prefixes."""
    choose = Chooser(None, RANK_TOLERANCE, generator, stepped)

    def choose_rank(V: Tensor, size: int) -> Int64:
        return choose(V, max(1, min(size, max_rank, numerical_rank(V, cut))))

    return leftward(sample, layout, rightward(sample, layout, wide, choose_rank), choose)


def _widened(
    layout: Layout,
    sets: IndexSets,
    pivots: list[Pivots],
    config: AdaptiveConfig,
    generator: np.random.Generator,
) -> IndexSets:
    """Suffixes with those of the pivots: a superblock's at its own bond, the tensor's at every bond."""
    *local, everywhere = pivots
    wide: list[Int64] = []
    behind = TRIVIAL
    for bond in reversed(range(len(sets.right))):
        points = np.concatenate([local[bond].indices, everywhere.indices])
        tails = points[:, bond + 1 :] @ np.array(layout.strides[bond + 1 :], np.int64)
        digits = layout.digits(bond + 1)
        extra = generator.choice(digits, config.extra) + generator.choice(behind, config.extra)
        behind = _joined(sets.right[bond], np.concatenate([tails, extra]))
        wide.insert(0, behind)
    return IndexSets(sets.left, tuple(wide))


def _joined(keys: Int64, others: Int64) -> Int64:
    """The keys, then those of the others that are new, each once."""
    _, first = np.unique(both := np.concatenate([keys, others]), return_index=True)
    return both[np.sort(first)]
