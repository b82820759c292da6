"""The samples that a train is made from, and where each of them is used."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from models.cpic.index_sets import IndexSets
from models.errors import InvalidShape
from models.keys import distinct
from models.tt.qtt import Layout
from models.types import Int64


@dataclass(frozen=True, eq=False)
class ForwardSet:
    """The samples that a train is made from, each once.

    `keys` (n,) are distinct and ascending; for a batch they are those of volume 0, then of volume 1, ..., and
    `first` says where each volume's begin, with n at the end. `blocks[k]` (..., p, n_k, q) and `crosses[k]`
    (..., p_k, q_k) say where in `keys` the entries of C_k = E(J_{k-1} x [n_k] x K_k) and G_k = E(J_k x K_k)
    stand; `...` is the batch axis, if there is one.
    """

    keys: Int64
    first: Int64
    blocks: tuple[Int64, ...]
    crosses: tuple[Int64, ...]

    @classmethod
    def of(cls, layout: Layout, sets: IndexSets) -> ForwardSet:
        """The forward set of index sets.

        Raises InvalidShape where a bond is not nested, and for a batch with 2^63 entries or more.
        """
        _nested(layout, sets)
        span, count = prod(layout.padded), prod(sets.batch)
        if span * count >= 2**63:
            raise InvalidShape(f"{count} volumes of {span:,} entries: a batch has less than 2^63 in all")
        volumes = np.arange(count).reshape(*sets.batch, 1) * span
        blocks = [sets.block(layout, core) + volumes[..., None, None] for core in range(len(layout.modes))]
        crosses = [
            J[..., :, None] + K[..., None, :] + volumes[..., None]
            for J, K in zip(sets.left, sets.right, strict=True)
        ]
        keys = distinct(np.concatenate([block.ravel() for block in blocks]))
        first = np.searchsorted(keys, np.arange(volumes.size + 1) * span)
        return cls(
            keys % span,
            first,
            tuple(np.searchsorted(keys, block) for block in blocks),
            tuple(np.searchsorted(keys, cross) for cross in crosses),
        )

    @property
    def samples(self) -> int:
        """Samples with repetition: the entries of all blocks."""
        return sum(block.size for block in self.blocks)

    @property
    def square(self) -> bool:
        """Whether each bond has as many prefixes as suffixes."""
        return all(cross.shape[-1] == cross.shape[-2] for cross in self.crosses)


def _nested(layout: Layout, sets: IndexSets) -> None:
    for core in range(len(sets.left)):
        J, K = sets.left[core], sets.right[core]
        if not _contains(sets.prefixes(core)[..., :, None] + layout.digits(core), J):
            raise InvalidShape(f"bond {core}: its prefixes do not continue those before")
        if not _contains(layout.digits(core + 1)[:, None] + sets.suffixes(core + 1)[..., None, :], K):
            raise InvalidShape(f"bond {core}: its suffixes do not continue those after")


def _contains(pairs: Int64, keys: Int64) -> bool:
    """Whether all keys (..., r) are among the pairs (..., p, n) of their volume."""
    flat = pairs.reshape(*pairs.shape[:-2], 1, -1)
    return bool((keys[..., :, None] == flat).any(axis=-1).all())


def gathered(values: Tensor, positions: Int64) -> Tensor:
    """`values` (n, ...) at positions of any shape."""
    return values[torch.from_numpy(positions).to(values.device)]
