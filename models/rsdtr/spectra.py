"""Spectra of a kernel's unfoldings, each factorised once for all candidates.

A set of axes against the others is a matrix; the rank that it needs for an error within the whole budget
bounds from below the product of the two bonds around those axes in any ring, and is the rank of the plain
SVD there.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from jaxtyping import Float64
from torch import Tensor

from models.rsdtr.cuts import ROUNDING, Tails, cut

Arrays = Float64[Tensor, "g *sizes"]


class Spectra:
    """A batch of kernels (g, *sizes), and `allowed`: the squared error that eps leaves them together."""

    def __init__(self, arrays: Arrays, eps: float) -> None:
        self.arrays = arrays
        self.sizes = tuple(arrays.shape[1:])
        self.norm2 = float(arrays.square().sum())
        self.allowed = max(0.0, (eps**2 - ROUNDING) * self.norm2)
        self._tails: dict[frozenset[int], Tails] = {}
        self._cuts: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def unfolded(self, axes: Iterable[int]) -> Float64[Tensor, "g m n"]:
        """The matrices of some axes, in this order, against the others."""
        rows = tuple(axes)
        others = [axis for axis in range(len(self.sizes)) if axis not in rows]
        turned = self.arrays.permute(0, *(1 + axis for axis in (*rows, *others)))
        return turned.reshape(len(self.arrays), prod(self.sizes[axis] for axis in rows), -1)

    def tails(self, axes: Iterable[int]) -> Tails:
        """What the best approximations of the axes against the others leave out."""
        key = self._key(axes)
        if key not in self._tails:
            self._tails[key] = Tails.of(self.unfolded(sorted(key)))
        return self._tails[key]

    def rank(self, axes: Iterable[int]) -> int:
        """The smallest rank within the whole budget."""
        return self.tails(axes).rank(self.allowed)

    def cut(self, mode: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
        """The truncated factors of a mode against the others: (g, n, rank), (g, rank, rest)."""
        if mode not in self._cuts or self._cuts[mode][0].shape[2] < rank:
            self._cuts[mode] = cut(self.unfolded(mode), rank)
        basis, rest = self._cuts[mode]
        return basis[..., :rank], rest[:, :rank]

    def _key(self, axes: Iterable[int]) -> frozenset[int]:
        """A set and its complement have the same spectrum: the one without the first axis."""
        rows = frozenset(axes)
        return rows if 0 not in rows else frozenset(range(len(self.sizes))) - rows
