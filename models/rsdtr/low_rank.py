"""Plain SVDs of a kernel's unfoldings: two convolutions, the whole error in one cut (Eckart & Young 1936).

The kernel W (O, I, *k) unfolded by (O, some spatial axes) against (I, the others) is U V of rank q: a
convolution of I to q channels along the others, then one of q to O channels along those axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from models.convolutions import Geometry
from models.errors import InvalidShape
from models.rsdtr.cuts import cut
from models.rsdtr.spectra import Spectra
from models.rsdtr.steps import IN, OUT, SPATIAL, Step

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class LowRankShape:
    """A factorisation of a kernel of `sizes` (o, i, *k) of one group without its numbers.

    `late` are the spatial axes (0 the first) of the second factor. Raises InvalidShape for axes that the
    kernel does not have, and for a rank below 1.
    """

    sizes: Sizes
    late: Sizes
    rank: int

    def __post_init__(self) -> None:
        axes = range(len(self.sizes) - SPATIAL)
        if self.rank < 1 or any(axis not in axes for axis in self.late):
            raise InvalidShape(f"no factorisation of {self.sizes} of rank {self.rank} late along {self.late}")

    @property
    def early(self) -> Sizes:
        """The spatial axes of the first factor."""
        return tuple(axis for axis in range(len(self.sizes) - SPATIAL) if axis not in self.late)

    @property
    def out_shape(self) -> Sizes:
        """Of the second factor for one group: (o, q, *k), 1 along the axes that it has not."""
        return (self.sizes[OUT], self.rank, *self._sizes_along(self.late))

    @property
    def in_shape(self) -> Sizes:
        """Of the first factor for one group: (q, i, *k)."""
        return (self.rank, self.sizes[IN], *self._sizes_along(self.early))

    @property
    def storage(self) -> int:
        """Numbers of both factors, of one group."""
        return prod(self.out_shape) + prod(self.in_shape)

    def steps(self) -> tuple[Step, Step]:
        """Both convolutions."""
        return (
            Step(self.sizes[IN], self.rank, 1, self.early),
            Step(self.rank, self.sizes[OUT], 1, self.late),
        )

    def _sizes_along(self, axes: Sizes) -> Sizes:
        return tuple(size if axis in axes else 1 for axis, size in enumerate(self.sizes[SPATIAL:]))


def low_rank_shapes(spectra: Spectra) -> Iterator[LowRankShape]:
    """All unfoldings with the outputs on one side and the inputs on the other, each of its smallest rank."""
    axes = range(len(spectra.sizes) - SPATIAL)
    for count in range(len(axes) + 1):
        for late in combinations(axes, count):
            rows = (OUT, *(SPATIAL + axis for axis in late))
            yield LowRankShape(spectra.sizes, late, spectra.rank(rows))


def low_rank_of(spectra: Spectra, shape: LowRankShape) -> tuple[Tensor, Tensor]:
    """The factors, (g * o, q, *k) and (g * q, i, *k), of equal norm."""
    rows = (OUT, *(SPATIAL + axis for axis in shape.late))
    basis, rest = cut(spectra.unfolded(rows), shape.rank)
    scale = rest.flatten(1).norm(dim=1).clamp(min=torch.finfo(rest.dtype).tiny).sqrt()
    scale = scale / shape.rank**0.25
    basis, rest = basis * scale[:, None, None], rest / scale[:, None, None]
    late_sizes = [shape.sizes[SPATIAL + axis] for axis in shape.late]
    second = basis.mT.reshape(len(basis), shape.rank, shape.sizes[OUT], *late_sizes).transpose(1, 2)
    return second.reshape(-1, *shape.out_shape[1:]), rest.reshape(-1, *shape.in_shape[1:])


def low_rank_kernel(
    shape: LowRankShape, second: Float[Tensor, "go q *k"], first: Float[Tensor, "gq i *k"]
) -> Float[Tensor, "g o i *k"]:
    """The kernels of the groups, differentiably."""
    g = first.shape[0] // shape.rank
    left = second.reshape(g, shape.sizes[OUT], shape.rank, -1).transpose(2, 3).flatten(1, 2)
    product = left @ first.reshape(g, shape.rank, -1)
    along = [*(SPATIAL + axis for axis in shape.late), IN, *(SPATIAL + axis for axis in shape.early)]
    kernel = product.reshape(g, shape.sizes[OUT], *(shape.sizes[axis] for axis in along))
    return kernel.permute(0, 1, *(2 + along.index(axis) for axis in range(1, len(shape.sizes))))


def blocks_of(kernel: Float[Tensor, "o i *k"], geometry: Geometry) -> Float[Tensor, "g o2 i *k"]:
    """The kernels of the groups."""
    return kernel.reshape(geometry.groups, *geometry.block_shape)
