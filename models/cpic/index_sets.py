"""Which fibres of the tensor are looked at: nested sets of prefixes and suffixes.

Keys may have leading batch axes: sets of several volumes with the same layout and the same sizes go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from models.errors import InvalidShape
from models.tt.qtt import Layout
from models.types import Int64

TRIVIAL = np.zeros(1, np.int64)


@dataclass(frozen=True, eq=False)
class IndexSets:
    """For each inner bond k the keys of prefixes, `left[k]` = J_k, and of suffixes, `right[k]` = K_k.

    Both have shape (..., size). Prefixes cover the modes up to core k, suffixes those from core k + 1. J is
    nested when each prefix of J_k continues one of J_{k-1}, K when each suffix of K_k ends in one of K_{k+1}.
    """

    left: tuple[Int64, ...]
    right: tuple[Int64, ...]

    def prefixes(self, core: int) -> Int64:
        """The prefixes before a core; the empty one before the first."""
        return self.left[core - 1] if core > 0 else TRIVIAL

    def suffixes(self, core: int) -> Int64:
        """The suffixes after a core; the empty one after the last."""
        return self.right[core] if core < len(self.right) else TRIVIAL

    def block(self, layout: Layout, core: int) -> Int64:
        """The keys of J_{k-1} x [n_k] x K_k, (..., p, n_k, q): all that core k is made from."""
        return block(self.prefixes(core), layout.digits(core), self.suffixes(core))

    def mirrored(self) -> IndexSets:
        """The same sets for the mirrored layout: suffixes are its prefixes."""
        return IndexSets(self.right[::-1], self.left[::-1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the suffix sets, bond by bond."""
        return tuple(suffixes.shape[-1] for suffixes in self.right)

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes' sizes; () for one volume."""
        return self.right[0].shape[:-1] if self.right else ()

    def of(self, volume: int) -> IndexSets:
        """The sets of one volume of a batch."""
        return IndexSets(tuple(J[volume] for J in self.left), tuple(K[volume] for K in self.right))

    @classmethod
    def batched(cls, sets: Sequence[IndexSets]) -> IndexSets:
        """Sets of several volumes, of equal sizes, as one batch."""
        return cls(
            tuple(np.stack(J) for J in zip(*(each.left for each in sets), strict=True)),
            tuple(np.stack(K) for K in zip(*(each.right for each in sets), strict=True)),
        )


def block(prefixes: Int64, digits: Int64, suffixes: Int64) -> Int64:
    """All sums of a prefix, a digit and a suffix: (..., prefixes, digits, suffixes)."""
    return prefixes[..., :, None, None] + digits[:, None] + suffixes[..., None, None, :]


def feasible_ranks(modes: Sequence[int], ranks: int | Sequence[int]) -> tuple[int, ...]:
    """The ranks capped to what each bond can carry: r_k <= r_{k-1} n_k and r_k <= n_{k+1} r_{k+1}.

    Raises InvalidShape for a rank below 1 or another number of ranks than bonds.
    """
    bonds = len(modes) - 1
    asked = [ranks] * bonds if isinstance(ranks, int) else list(ranks)
    if len(asked) != bonds:
        raise InvalidShape(f"{len(modes)} modes have {bonds} bonds, but {len(asked)} ranks were given")
    for bond, rank in enumerate(asked):
        if rank < 1:
            raise InvalidShape(f"bond {bond}: a rank must be at least 1, not {rank}")
    for bond in range(bonds):
        asked[bond] = min(asked[bond], (asked[bond - 1] if bond else 1) * modes[bond])
    for bond in reversed(range(bonds)):
        asked[bond] = min(asked[bond], (asked[bond + 1] if bond + 1 < bonds else 1) * modes[bond + 1])
    return tuple(asked)


def random_start(layout: Layout, ranks: int | Sequence[int], seed: int) -> IndexSets:
    """Nested random suffixes of the feasible ranks; the prefixes are still empty sets.

    Each suffix of K_{k+1} is used once before any is used twice, so that no bond loses variety.
    """
    generator = np.random.default_rng(seed)
    right: list[Int64] = []
    tails = TRIVIAL
    for bond, rank in reversed(list(enumerate(feasible_ranks(layout.modes, ranks)))):
        tails = _spread(generator, layout.digits(bond + 1), tails)[:rank]
        right.insert(0, tails)
    return IndexSets(tuple(np.empty(0, np.int64) for _ in right), tuple(right))


def _spread(generator: np.random.Generator, digits: Int64, tails: Int64) -> Int64:
    """All digit + tail sums in random order, in rounds: every tail comes once in each round."""
    of_tail = generator.permuted(np.tile(digits, (len(tails), 1)), axis=1)
    order = generator.permuted(np.tile(np.arange(len(tails)), (len(digits), 1)), axis=1)
    rounds = np.arange(len(digits))[:, None]
    return np.asarray(of_tail[order, rounds] + tails[order]).ravel()


def prefix_counts(
    modes: Sequence[int], suffixes: Sequence[int], features: int = 1, size: int | None = None
) -> tuple[int, ...]:
    """How many prefixes go with suffix sets of these sizes: as many, p_k = q_k, where samples are numbers.

    Where they are vectors of c features, bonds carry more prefixes than their suffixes say: `size` of them
    (as many as there are suffixes anywhere, if it is not given), up to the c n_{k+1} ... n_d entries that a
    prefix stands for.
    """
    size = max(suffixes, default=1) if size is None else size
    found: list[int] = []
    for core, q in enumerate(suffixes):
        before = found[-1] if found else 1
        behind = features * prod(modes[core + 1 :])
        wanted = q if features == 1 else max(q, min(size, behind))
        found.append(min(before * modes[core], wanted))
    return tuple(found)


def nested_samples(
    modes: Sequence[int], prefixes: Sequence[int], suffixes: Sequence[int] | None = None
) -> tuple[int, int]:
    """The nestedness law: (samples, distinct samples) of a train from nested sets of p_k and q_k elements.

    sum p_{k-1} n_k q_k, of which each of the sum p_k q_k entries of a cross G_k belongs to two neighbours.
    There are as many suffixes as prefixes if they are not given.
    """
    suffixes = prefixes if suffixes is None else suffixes
    sizes = zip((1, *prefixes), modes, (*suffixes, 1), strict=True)
    samples = sum(p * n * q for p, n, q in sizes)
    return samples, samples - sum(p * q for p, q in zip(prefixes, suffixes, strict=True))
