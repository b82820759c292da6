"""A convolution whose kernel is a sum of rank-one terms: one voxel, depthwise, one voxel."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from models.convolutions import Geometry
from models.errors import InvalidShape
from models.rsdtr.canonical import CanonicalShape, Factors, kernel_of
from models.rsdtr.layers import Batch, FactorisedLayer
from models.rsdtr.steps import IN, OUT, SPATIAL, Step


class CanonicalConv(FactorisedLayer):
    """`core_in` (groups * R, i), `core_spatial` (groups * R, 1, *k) of each channel, `core_out` (O, R).

    Raises InvalidShape for factors of another kernel.
    """

    core_out: nn.Parameter
    core_in: nn.Parameter
    core_spatial: nn.Parameter

    def __init__(
        self, geometry: Geometry, shape: CanonicalShape, factors: Factors, bias: Tensor | None = None
    ) -> None:
        super().__init__(geometry, bias)
        groups, rank = geometry.groups, shape.rank
        sizes = (shape.sizes[OUT], shape.sizes[IN], prod(shape.sizes[SPATIAL:]))
        wanted = [(groups, size, rank) for size in sizes]
        if shape.sizes != geometry.block_shape or wanted != [tuple(each.shape) for each in factors]:
            raise InvalidShape(f"factors of a sum of {rank} terms of {geometry} must be {wanted}")
        self.shape = shape
        a, b, c = (each.detach().clone() for each in factors)
        self.core_out = nn.Parameter(a.reshape(-1, rank))
        self.core_in = nn.Parameter(b.transpose(1, 2).flatten(0, 1).contiguous())
        self.core_spatial = nn.Parameter(
            c.transpose(1, 2).reshape(groups * rank, 1, *geometry.kernel).contiguous()
        )

    def kernel(self) -> Float[Tensor, "o i *k"]:
        """See `FactorisedLayer`."""
        return kernel_of(self.shape, self.core_out, self.core_in, self.core_spatial)

    def steps(self, plan: str) -> tuple[Step, ...]:
        """See `FactorisedLayer`."""
        return self.shape.steps()

    def stepwise(self, x: Batch, plan: str) -> Batch:
        """See `FactorisedLayer`."""
        channels = self.geometry.groups * self.shape.rank
        alone = replace(self.geometry, inputs=channels, outputs=channels, groups=channels)
        ones = tuple(1 for _ in self.geometry.axes)
        inner = self.geometry.convolved(x, self.core_in.reshape(*self.core_in.shape, *ones), axes=())
        placed = alone.convolved(inner, self.core_spatial)
        return self.geometry.convolved(
            placed, self.core_out.reshape(*self.core_out.shape, *ones), self.bias, axes=()
        )

    def _factors(self) -> list[Tensor]:
        return [self.core_out, self.core_in, self.core_spatial]


def balanced(factors: Factors) -> Factors:
    """The same kernels by factors of which each term has the same norm."""
    norms = [factor.norm(dim=1, keepdim=True) for factor in factors]
    mean = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    a, b, c = (factor * (mean / norm.clamp(min=1e-300)) for factor, norm in zip(factors, norms, strict=True))
    return a, b, c
