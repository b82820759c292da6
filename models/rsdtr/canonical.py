"""Kernels as sums of rank-one terms: W(o, i, k) = sum_r A(o, r) B(i, r) C(k, r) (CP; Kolda & Bader 2009).

The kernel's voxels k are one mode. As a layer that is a convolution of one voxel from I to R channels, one of
each channel by itself (depthwise) with the whole kernel, and one of one voxel from R to O (Lebedev et al.
2015): of all forms the fewest numbers and MACs at most errors. There is no closed form: factors descend by
alternating least squares, each rank from the factors of the one before, with new terms drawn from a fixed
seed. The same kernels give the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidShape
from models.rsdtr.spectra import Arrays
from models.rsdtr.steps import IN, OUT, SPATIAL, Sizes, Step

FIRST_SWEEPS, SWEEPS = 60, 40
"""Of alternating least squares: from drawn factors, and from those of the rank before."""
GROWTH = 1.12
"""Of the ranks that are tried, one after the other."""
MOST = 3
"""Terms for a channel."""
WORK = 10**9
"""Numbers of a kernel times terms: a sweep has about six times as many additions and multiplications."""
RIDGE = 1e-9
"""Of the mean of a normal matrix's diagonal, added to it: terms may become alike."""
NEW = 0.1
"""Norm of a new term, of the smallest one that is known."""

Factors = tuple[Float64[Tensor, "g o r"], Float64[Tensor, "g i r"], Float64[Tensor, "g k r"]]


@dataclass(frozen=True)
class CanonicalShape:
    """A sum of `rank` terms for a kernel of `sizes` (o, i, *k) of one group, without its numbers.

    Raises InvalidShape for a rank below 1.
    """

    sizes: Sizes
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidShape(f"no sum of {self.rank} terms is a kernel {self.sizes}")

    @property
    def storage(self) -> int:
        """Numbers of the factors of one group."""
        return self.rank * (self.sizes[OUT] + self.sizes[IN] + prod(self.sizes[SPATIAL:]))

    def steps(self) -> tuple[Step, ...]:
        """The three convolutions."""
        axes = tuple(range(len(self.sizes) - SPATIAL))
        return (
            Step(self.sizes[IN], self.rank, 1, ()),
            Step(1, 1, self.rank, axes),
            Step(self.rank, self.sizes[OUT], 1, ()),
        )


class CanonicalPath:
    """Factors of kernels (g, *sizes) for ever larger ranks, as far as they are asked for.

    `errors` are the squared errors of `ranks`. These end where factors are no smaller than the kernels, at
    `MOST` times the channels, and where a sweep takes more than `WORK`.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.sizes = tuple(arrays.shape[1:])
        self._arrays = arrays.flatten(1 + SPATIAL)
        self.ranks: list[int] = []
        self.errors: list[float] = []
        self._last: Factors | None = None
        self._next = self._ranks()

    def rank(self, allowed: float) -> int | None:
        """The first rank tried whose squared error is `allowed` at most; None where there is none."""
        for rank, error in zip(self.ranks, self.errors, strict=True):
            if error <= allowed:
                return rank
        while (rank := next(self._next, 0)) > 0:
            self._go_to(rank)
            if self.errors[-1] <= allowed:
                return rank
        return None

    def error2(self, rank: int) -> float:
        """The squared error of a rank that was tried."""
        return self.errors[self.ranks.index(rank)]

    def factors(self, rank: int) -> Factors:
        """Those of one of the path's ranks. Raises InvalidShape for another."""
        while not self.ranks or self.ranks[-1] < rank:
            if (following := next(self._next, 0)) == 0:
                break
            self._go_to(following)
        if self._last is None or self.ranks[-1] != rank:
            raise InvalidShape(f"{rank} terms are none of those tried for a kernel {self.sizes}")
        return self._last

    def _ranks(self) -> Iterator[int]:
        dense, term = prod(self.sizes), CanonicalShape(self.sizes, 1).storage
        rank = max(1, min(self.sizes[OUT], self.sizes[IN]) // 8)
        most = min(MOST * max(self.sizes[:SPATIAL]), WORK // dense)
        while rank * term < dense and rank <= most:
            yield rank
            rank = max(rank + 1, int(rank * GROWTH))

    def _go_to(self, rank: int) -> None:
        sweeps = SWEEPS if self._last else FIRST_SWEEPS
        self._last, error = descended(self._arrays, _started(self._arrays, rank, self._last), sweeps)
        self.ranks.append(rank)
        self.errors.append(error)


def descended(arrays: Float64[Tensor, "g o i k"], start: Factors, sweeps: int) -> tuple[Factors, float]:
    """Factors after some sweeps of alternating least squares, and their squared error."""
    a, b, c = start
    by_output = arrays.flatten(2)
    by_input = arrays.transpose(1, 2).flatten(2)
    by_place = arrays.permute(0, 3, 1, 2).flatten(2)
    for _ in range(sweeps):
        a = _unit(_solved(by_output @ _products(b, c), _gram(b) * _gram(c)))
        b = _unit(_solved(by_input @ _products(a, c), _gram(a) * _gram(c)))
        c = _solved(by_place @ _products(a, b), _gram(a) * _gram(b))
    made = (a * c.norm(dim=1, keepdim=True), b, _unit(c))
    error = (made[0] @ _products(made[1], made[2]).mT - by_output).square().sum()
    return made, float(error)


def kernel_of(
    shape: CanonicalShape,
    out: Float[Tensor, "go r"],
    inner: Float[Tensor, "gr i"],
    spatial: Float[Tensor, "gr one *k"],
) -> Float[Tensor, "go i *k"]:
    """The kernels of the groups, differentiably, from the factors as a layer has them."""
    groups = len(inner) // shape.rank
    a = out.reshape(groups, shape.sizes[OUT], shape.rank)
    b = inner.reshape(groups, shape.rank, shape.sizes[IN])
    c = spatial.reshape(groups, shape.rank, -1)
    terms = (b[..., None] * c[:, :, None]).flatten(2)
    return (a @ terms).reshape(-1, *shape.sizes[IN:])


def _started(arrays: Tensor, rank: int, known: Factors | None) -> Factors:
    """Factors to descend from: those known, and further terms that are small beside them."""
    generator = torch.Generator().manual_seed(rank)
    groups = len(arrays)
    drawn = [
        _unit(torch.randn(groups, size, rank, generator=generator, dtype=arrays.dtype))
        for size in arrays.shape[1:]
    ]
    if known is not None:
        count = known[0].shape[2]
        smallest = known[0].norm(dim=1).amin(dim=1)
        drawn[0] = drawn[0] * (NEW * smallest)[:, None, None]
        for new, old in zip(drawn, known, strict=True):
            new[..., :count] = old
    a, b, c = drawn
    return a, b, c


def _products(b: Tensor, c: Tensor) -> Float64[Tensor, "g ik r"]:
    """Columns of b times columns of c: the Khatri-Rao product."""
    return (b[:, :, None] * c[:, None]).flatten(1, 2)


def _gram(factor: Tensor) -> Float64[Tensor, "g r r"]:
    return factor.mT @ factor


def _solved(right: Tensor, normal: Float64[Tensor, "g r r"]) -> Tensor:
    ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(normal.dtype).tiny)
    damped = normal + ridge[:, None, None] * torch.eye(normal.shape[-1], dtype=normal.dtype)
    return torch.linalg.solve(damped, right.mT).mT  # type: ignore[no-any-return]


def _unit(factor: Tensor) -> Tensor:
    norms: Tensor = factor.norm(dim=1, keepdim=True)
    return factor / norms.clamp(min=torch.finfo(factor.dtype).tiny)
