"""An array as a ring of cores: W(i_1 ... i_d) = trace(G_1[:, i_1, :] ... G_d[:, i_d, :]) (Zhao et al. 2016).

A core stands for one axis of the array or for several together, in any cyclic order. The kernels of a grouped
convolution are a batch of arrays: their rings have the same ranks, and one leading axis in every core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import InvalidShape

Core = Float[Tensor, "g left n right"]
Arrays = Float[Tensor, "g *sizes"]
Mode = tuple[int, ...]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class RingShape:
    """A ring without its numbers: what each core stands for, and the ranks.

    `modes[k]` are the axes of an array of `sizes` that core k holds, the last fastest; all axes once.
    `ranks[k]` is the rank of the bond before core k; the last core closes the ring with the first.
    """

    sizes: Sizes
    modes: tuple[Mode, ...]
    ranks: Sizes

    def __post_init__(self) -> None:
        if sorted(axis for mode in self.modes for axis in mode) != list(range(len(self.sizes))):
            raise InvalidShape(f"modes {self.modes} must hold each axis of {self.sizes} once")
        if len(self.ranks) != len(self.modes) or len(self.modes) < 2 or any(r < 1 for r in self.ranks):
            raise InvalidShape(
                f"a ring of {len(self.modes)} cores needs as many positive ranks, not {self.ranks}"
            )

    @property
    def lengths(self) -> Sizes:
        """The sizes of the cores' modes."""
        return lengths(self.sizes, self.modes)

    @property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        """Of each core, the ranks (before, after)."""
        return tuple(zip(self.ranks, (*self.ranks[1:], self.ranks[0]), strict=True))

    @property
    def storage(self) -> int:
        """Numbers of all cores, of one array: sum r_k n_k r_{k+1}."""
        return sum(left * n * right for n, (left, right) in zip(self.lengths, self.bonds, strict=True))

    @property
    def smallest_pair(self) -> tuple[int, int]:
        """The two bonds of least product: where two arcs of the ring are best closed."""
        pairs = combinations(range(len(self.ranks)), 2)
        _, first, second = min((self.ranks[i] * self.ranks[j], i, j) for i, j in pairs)
        return first, second

    def of_mode(self, axis: int) -> int:
        """The core that holds an axis."""
        return next(k for k, mode in enumerate(self.modes) if axis in mode)


@dataclass(frozen=True, eq=False)
class TensorRing:
    """The cores (g, r_k, n_k, r_{k+1}) of a batch of g arrays. Raises InvalidShape where they do not fit."""

    shape: RingShape
    cores: tuple[Core, ...]

    def __post_init__(self) -> None:
        wanted = [
            (self.batch, left, n, right)
            for n, (left, right) in zip(self.shape.lengths, self.shape.bonds, strict=True)
        ]
        if (found := [tuple(core.shape) for core in self.cores]) != wanted:
            raise InvalidShape(f"cores of a ring {self.shape} must be {wanted}, not {found}")

    @property
    def batch(self) -> int:
        """The number of arrays."""
        return self.cores[0].shape[0]

    @property
    def storage(self) -> int:
        """Numbers of all cores."""
        return self.batch * self.shape.storage

    def full(self) -> Arrays:
        """The arrays themselves."""
        return contracted(self.shape, self.cores, self.shape.smallest_pair)

    def relative_error(self, arrays: Arrays) -> float:
        """||W - W^|| / ||W|| over all arrays of the batch, Frobenius; 0 for a zero met exactly."""
        norm = float(torch.linalg.vector_norm(arrays))
        distance = float(torch.linalg.vector_norm(arrays - self.full()))
        return distance / norm if norm else distance

    def balanced(self) -> TensorRing:
        """The same arrays by cores of equal norm: what training and half precision ask for."""
        norms = torch.stack([core.flatten(1).norm(dim=1) for core in self.cores])
        mean = norms.clamp(min=torch.finfo(norms.dtype).tiny).log().mean(0).exp()
        factors = torch.where(norms > 0, mean / norms, torch.zeros_like(norms))
        cores = (core * factor[:, None, None, None] for core, factor in zip(self.cores, factors, strict=True))
        return TensorRing(self.shape, tuple(cores))


def lengths(sizes: Sizes, modes: Sequence[Mode]) -> Sizes:
    """The sizes of modes: products of those of their axes."""
    return tuple(prod(sizes[axis] for axis in mode) for mode in modes)


def contracted(shape: RingShape, cores: Sequence[Core], pair: tuple[int, int]) -> Arrays:
    """The arrays of a ring, differentiably: two arcs of it, closed at a pair of bonds (i, j), i < j."""
    d, (first, second) = len(cores), pair
    inner = list(range(first, second))
    outer = [k % d for k in range(second, first + d)]
    near, far = (arc([cores[k] for k in part]) for part in (inner, outer))
    closed = near.transpose(1, 2).flatten(2) @ far.permute(0, 3, 1, 2).flatten(1, 2)
    order = [axis for k in (*inner, *outer) for axis in shape.modes[k]]
    arrays = closed.reshape(len(closed), *(shape.sizes[axis] for axis in order))
    return arrays.permute(0, *(1 + order.index(axis) for axis in range(len(order))))


def arc(cores: Sequence[Core]) -> Core:
    """Neighbours as one core; the last mode is fastest."""
    joined = cores[0]
    for core in cores[1:]:
        g, left, n, _ = joined.shape
        joined = (joined.flatten(1, 2) @ core.flatten(2)).reshape(g, left, n * core.shape[2], core.shape[3])
    return joined
