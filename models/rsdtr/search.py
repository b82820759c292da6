"""The ring of least storage within an error: branch and bound over groupings, orders and first ranks.

A path is an order of the modes and a divisor R0 of the first rank (TR-SVD, arXiv 2405.10802, with other
tolerances): of the squared error still allowed, each of the remaining cuts may use an equal share, and what
it leaves unused goes to the next ones. The errors of orthogonal projections add up: the whole never exceeds
what eps allows.

A path is given up as soon as it cannot beat what is known: after any cut, the arrays unfolded by the modes
between two bonds i and j have at most the rank r_i r_j, and at least the one that their spectrum asks for
within the error that this many cuts may have made. Flat spectra of large kernels bound little: the cuts of a
grouping may take `MOST_WORK` together, and those that would go beyond it are not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, permutations
from math import prod

from jaxtyping import Float64
from torch import Tensor

from models.rsdtr.cuts import Tails, cut, divisors, remainder
from models.rsdtr.ring import Mode, RingShape, TensorRing, lengths
from models.rsdtr.spectra import Spectra

Modes = tuple[Mode, ...]
Ranks = tuple[int, ...]
Rest = Float64[Tensor, "g left *sizes start"]
Accept = Callable[[RingShape], bool]
"""Whether a ring may be taken: a limit on its MACs, say."""
MOST_WORK = 1e10
"""Multiplications: a fraction of a second. Kernels (64, 64, 3, 3) take a twentieth of it."""
EIGENVALUES = 8
"""Multiplications for those of an n x n matrix, over n^3."""


class RingSearch:
    """The smallest ring found so far of one kernel, grouping after grouping; `limit` must be undercut."""

    def __init__(self, spectra: Spectra, limit: int, accept: Accept) -> None:
        self.found: RingShape | None = None
        self.limit = limit
        self._spectra, self._accept = spectra, accept

    def over(self, modes: Modes) -> None:
        """Search all rings of these modes."""
        _Grouping(self, self._spectra, modes).search()

    def offer(self, shape: RingShape) -> None:
        """Take a ring within the error, if it is smaller and may be taken."""
        if shape.storage < self.limit and self._accept(shape):
            self.found, self.limit = shape, shape.storage


class _Grouping:
    """The rings of one grouping. A path is `order`, the modes so far, and the ranks before and after them."""

    def __init__(self, search: RingSearch, spectra: Spectra, modes: Modes) -> None:
        self.search_, self.spectra = search, spectra
        self.modes, self.sizes = modes, lengths(spectra.sizes, modes)
        self.cuts = len(modes) - 1
        self._tails: dict[Ranks, Tails] = {}
        self._work_left = MOST_WORK

    def search(self) -> None:
        """All first modes and divisors, the most promising first."""
        for bound, first, ranks, used in sorted(self._roots()):
            if bound >= self.search_.limit:
                break
            if any(self._affordable((first,), ranks, mode) for mode in self._remaining((first,))):
                self._expand((first,), ranks, self._first_rest(first, ranks), used)

    def _roots(self) -> Iterator[tuple[int, int, Ranks, float]]:
        for first, mode in enumerate(self.modes):
            tails = self.spectra.tails(mode)
            rank = tails.rank(self.spectra.allowed / self.cuts)
            used = tails.left_out(rank)
            for start in divisors(rank):
                ranks = (start, rank // start)
                yield self._bound((first,), ranks, used), first, ranks, used

    def _first_rest(self, first: int, ranks: Ranks) -> Rest:
        """Sigma V^T of the first cut, its rank split: (g, r_1, *other modes, r_0)."""
        start, after = ranks
        _, rest = self.spectra.cut(self.modes[first], start * after)
        others = [k for k in range(len(self.modes)) if k != first]
        flat = [axis for axis in range(len(self.spectra.sizes)) if axis not in self.modes[first]]
        split = rest.reshape(len(rest), start, after, *(self.spectra.sizes[axis] for axis in flat))
        order = [flat.index(axis) for k in others for axis in self.modes[k]]
        turned = split.permute(0, 2, *(3 + place for place in order), 1)
        return turned.reshape(len(rest), after, *(self.sizes[k] for k in others), start)

    def _expand(self, order: Ranks, ranks: Ranks, rest: Rest, used: float) -> None:
        """Try each remaining mode next. The axes of `rest` are the remaining modes, in their own order."""
        remaining = self._remaining(order)
        choices = sorted((self._bound((*order, mode), ranks, used), mode) for mode in remaining)
        for bound, mode in choices:
            if bound >= self.search_.limit:
                break
            if self._affordable(order, ranks, mode):
                self._cut((*order, mode), ranks, unfolded(rest, remaining.index(mode)), used)

    def _cut(self, order: Ranks, ranks: Ranks, matrices: Float64[Tensor, "g m n"], used: float) -> None:
        """Cut the last mode of `order` off, and go on where the bound allows it."""
        self._work_left -= work(*matrices.shape)
        tails = Tails.of(matrices)
        rank = tails.rank((self.spectra.allowed - used) / (self.cuts - len(order) + 1))
        after, used = (*ranks, rank), used + tails.left_out(rank)
        if len(order) == self.cuts:
            (last,) = set(range(len(self.modes))) - set(order)
            self._offer((*order, last), after)
        elif self._bound(order, after, used) < self.search_.limit:
            sizes = (self.sizes[k] for k in range(len(self.modes)) if k not in order)
            rest = remainder(matrices, rank)
            self._expand(order, after, rest.reshape(len(rest), rank, *sizes, ranks[0]), used)

    def _remaining(self, order: Ranks) -> list[int]:
        return [k for k in range(len(self.modes)) if k not in order]

    def _affordable(self, order: Ranks, ranks: Ranks, mode: int) -> bool:
        """Whether this mode may be cut off next."""
        others = prod(self.sizes[k] for k in self._remaining((*order, mode)))
        rows, columns = ranks[-1] * self.sizes[mode], others * ranks[0]
        return work(len(self.spectra.arrays), rows, columns) <= self._work_left

    def _offer(self, order: Ranks, ranks: Ranks) -> None:
        bonds = pairwise((*ranks, ranks[0]))
        storage = sum(self.sizes[k] * left * right for k, (left, right) in zip(order, bonds, strict=True))
        if storage < self.search_.limit:
            modes = tuple(self.modes[k] for k in order)
            self.search_.offer(RingShape(self.spectra.sizes, modes, ranks))

    def _bound(self, prefix: Ranks, ranks: Ranks, used: float) -> int:
        """No ring that begins like this has less storage."""
        others = [k for k in range(len(self.modes)) if k not in prefix]
        return min(self._bound_of((*prefix, *rest), ranks, used) for rest in permutations(others))

    def _bound_of(self, order: Ranks, ranks: Ranks, used: float) -> int:
        """Bonds of `order` in turn: the known `ranks`, and the least that those after them can be."""
        done, least = len(ranks) - 1, list(ranks)
        share = (self.spectra.allowed - used) / max(1, self.cuts - done)
        storage = sum(self.sizes[order[k]] * ranks[k] * ranks[k + 1] for k in range(done))
        for bond in range(done + 1, len(order) + 1):
            budget = used + share * (min(bond, self.cuts) - done)
            if bond < len(order):
                needed = (-(-self._needed(order[i:bond], budget) // rank) for i, rank in enumerate(ranks))
                least.append(max(needed))
            else:
                least.append(ranks[0])
            core = max(least[bond - 1] * least[bond], self._needed(order[bond - 1 : bond], budget))
            storage += self.sizes[order[bond - 1]] * core
        return storage

    def _needed(self, modes: Ranks, budget: float) -> int:
        """The rank of these modes against the others for a squared error of `budget`."""
        if modes not in self._tails:
            self._tails[modes] = self.spectra.tails(axis for mode in modes for axis in self.modes[mode])
        return self._tails[modes].rank(budget)


def work(g: int, m: int, n: int) -> float:
    """Multiplications to cut g matrices (m, n): their Gram matrices, and the spectra of those."""
    small, large = sorted((m, n))
    return g * small**2 * (large + EIGENVALUES * small)


def ring_of(spectra: Spectra, shape: RingShape) -> TensorRing:
    """The cores of a ring that a search has found, by the same cuts."""
    g, d = len(spectra.arrays), len(shape.modes)
    sizes, ranks = shape.lengths, (*shape.ranks, shape.ranks[0])
    basis, _ = spectra.cut(shape.modes[0], ranks[0] * ranks[1])
    cores = [basis.reshape(g, sizes[0], ranks[0], ranks[1]).transpose(1, 2)]
    order = [axis for mode in shape.modes for axis in mode]
    turned = spectra.arrays.permute(0, *(1 + axis for axis in order)).reshape(g, sizes[0], -1)
    rest = (basis.mT @ turned).reshape(g, ranks[0], ranks[1], -1).permute(0, 2, 3, 1)
    for k in range(1, d - 1):
        basis, rest = cut(rest.reshape(g, ranks[k] * sizes[k], -1), ranks[k + 1])
        cores.append(basis.reshape(g, ranks[k], sizes[k], ranks[k + 1]))
    cores.append(rest.reshape(g, ranks[d - 1], sizes[-1], ranks[0]))
    return TensorRing(shape, tuple(core.contiguous() for core in cores))


def unfolded(rest: Rest, place: int) -> Float64[Tensor, "g m n"]:
    """(left, the mode at this place) against the others."""
    moved = rest.movedim(2 + place, 2)
    return moved.reshape(len(rest), rest.shape[1] * moved.shape[2], -1)


def groupings(sizes: Sequence[int]) -> list[Modes]:
    """The modes that a kernel (O, I, *k) is tried by: from its voxels in one mode to an axis each.

    Spatial axes of one voxel share the mode of a neighbour; a kernel of one voxel has no grouping.
    """
    axes = range(2, len(sizes))
    if prod(sizes[2:]) == 1:
        return []
    found: list[Modes] = []
    for count in range(len(axes)):
        blocks = _blocks(sizes, axes, set(axes[:count]))
        modes: Modes = ((0,), (1,), *blocks)
        if modes not in found:
            found.append(modes)
    return found


def _blocks(sizes: Sequence[int], axes: Sequence[int], alone: set[int]) -> list[Mode]:
    """The axes in blocks: those alone each, the others together, axes of one voxel with what is before."""
    blocks: list[list[int]] = []
    apart = True
    for axis in axes:
        if blocks and (not apart or sizes[axis] == 1 or prod(sizes[other] for other in blocks[-1]) == 1):
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
        apart = axis in alone
    return [tuple(block) for block in blocks]
