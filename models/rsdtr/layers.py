"""Convolutions and linear layers whose kernel is a ring of cores, or of low rank.

A layer is executed by one of its plans, the same map in each:

    rebuild     one dense convolution; in training the kernel is made anew at each step, else kept
    merged      the inputs' core, neighbouring spatial cores as one convolution, the outputs' core
    separable   a convolution for each core

The factors are parameters: `core_out`, `core_in`, and `core_spatial_` with the axes that it stands for; of a
ring each has the shape (groups, left, n, right).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.convolutions import Geometry, plain_layer
from models.errors import InvalidConfig, InvalidShape
from models.rsdtr.kept import KeptKernel
from models.rsdtr.low_rank import LowRankShape, low_rank_kernel
from models.rsdtr.ring import Core, Mode, TensorRing, arc, contracted
from models.rsdtr.steps import IN, OUT, SPATIAL, Cost, Step, best_steps, cost_of, nominal

REBUILD, MERGED, SEPARABLE = "rebuild", "merged", "separable"
Batch = Float[Tensor, "n c *spatial"]


class FactorisedLayer(nn.Module, ABC):
    """A layer of this geometry with a factorised kernel, and a bias of its own where it has one.

    `plan` says how it is executed: one of `plans`. Inputs may lack the batch's axis, as PyTorch's own.
    """

    bias: nn.Parameter | None

    def __init__(self, geometry: Geometry, bias: Tensor | None) -> None:
        super().__init__()
        self.geometry = geometry
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._plan = REBUILD
        self._kept = KeptKernel()

    @property
    def plans(self) -> tuple[str, ...]:
        """What the layer may be executed by; `rebuild` the first."""
        return (REBUILD, SEPARABLE)

    @property
    def plan(self) -> str:
        """How the layer is executed. Raises InvalidConfig where it is set to none of `plans`."""
        return self._plan

    @plan.setter
    def plan(self, plan: str) -> None:
        if plan not in self.plans:
            raise InvalidConfig("plan", plan, f"one of {', '.join(self.plans)}")
        self._plan = plan

    @abstractmethod
    def kernel(self) -> Float[Tensor, "o i *k"]:
        """The dense kernel (O, I / groups, *k), differentiably."""

    @abstractmethod
    def steps(self, plan: str) -> tuple[Step, ...]:
        """The convolutions of a plan other than `rebuild`."""

    @abstractmethod
    def stepwise(self, x: Batch, plan: str) -> Batch:
        """The layer as the convolutions of this plan, one after the other."""

    @property
    def storage(self) -> int:
        """Numbers of the factors, without the bias."""
        return sum(factor.numel() for factor in self._factors())

    def cost(self, spatial: tuple[int, ...], plan: str | None = None) -> Cost:
        """Of one sample of these spatial sizes, by the layer's plan or another."""
        chosen = plan or self.plan
        if chosen == REBUILD:
            return Cost(self.geometry.macs(spatial), self.geometry.activation(spatial))
        return cost_of(self.geometry, self.steps(chosen), spatial)

    def folded(self) -> nn.Module:
        """The layer of PyTorch with the dense kernel, which shares nothing with this one."""
        with torch.no_grad():
            return plain_layer(self.geometry, self.kernel(), self.bias).train(self.training)

    def forward(self, x: Batch) -> Batch:
        """What the dense layer gives, by the plan."""
        if self.geometry.kernel and x.ndim == len(self.geometry.kernel) + 1:
            return self(x[None])[0]  # type: ignore[no-any-return]
        if self._plan != REBUILD:
            return self.stepwise(x, self._plan)
        kernel = self.kernel() if self.training else self._kept.of(self._factors(), self.kernel)
        return self.geometry.convolved(x, kernel, self.bias)

    def train(self, mode: bool = True) -> Self:
        """See nn.Module; the next kernel is made anew."""
        self._kept.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """See nn.Module: what moves the factors or casts them."""
        self._kept.forget()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def extra_repr(self) -> str:
        """The geometry and the plan."""
        return f"{self.geometry}, plan={self.plan!r}"

    @abstractmethod
    def _factors(self) -> list[Tensor]: ...


class RingConv(FactorisedLayer):
    """A convolution of one, two or three axes whose groups' kernels are rings of the same ranks.

    Raises InvalidShape for a ring of another kernel, or with the inputs' or outputs' axis in a shared mode.
    """

    def __init__(self, geometry: Geometry, ring: TensorRing, bias: Tensor | None = None) -> None:
        super().__init__(geometry, bias)
        shape = ring.shape
        if shape.sizes != geometry.block_shape or ring.batch != geometry.groups:
            raise InvalidShape(f"a ring of {ring.batch} kernels {shape.sizes} is none of {geometry}")
        if not {(OUT,), (IN,)} < set(shape.modes):
            raise InvalidShape(f"a ring of modes {shape.modes} has no core of its own for inputs and outputs")
        self.shape = shape
        self._closed_at = shape.smallest_pair
        self._names = tuple(_name(mode) for mode in shape.modes)
        for name, core in zip(self._names, ring.cores, strict=True):
            self.register_parameter(name, nn.Parameter(core.detach().clone()))
        self._steps = {
            plan: best_steps(geometry, shape, nominal(geometry), merged=plan == MERGED)[0]
            for plan in (MERGED, SEPARABLE)
        }

    @property
    def plans(self) -> tuple[str, ...]:
        """See `FactorisedLayer`; merged only where there are neighbours to merge."""
        same = len(self._steps[MERGED]) == len(self._steps[SEPARABLE])
        return (REBUILD, SEPARABLE) if same else (REBUILD, MERGED, SEPARABLE)

    def ring(self) -> TensorRing:
        """The cores as they are, without history."""
        return TensorRing(self.shape, tuple(factor.detach() for factor in self._factors()))

    def kernel(self) -> Float[Tensor, "o i *k"]:
        """See `FactorisedLayer`."""
        return contracted(self.shape, self._factors(), self._closed_at).flatten(0, 1)

    def steps(self, plan: str) -> tuple[Step, ...]:
        """See `FactorisedLayer`."""
        return self._steps[plan]

    def stepwise(self, x: Batch, plan: str) -> Batch:
        """See `FactorisedLayer`. Between the steps: (n, idle, groups, active, *spatial)."""
        _, *middle, _ = self.steps(plan)
        groups, right = self.geometry.groups, middle[0].right
        state = self.geometry.convolved(x, self._opening(right), axes=())
        state = state.reshape(len(x), groups, middle[0].idle, middle[0].inputs, *state.shape[2:])
        state = state.transpose(1, 2)
        for before, step in pairwise([middle[0], *middle]):
            state = state if step.right == before.right else state.transpose(1, 3)
            folded = state.reshape(len(x) * step.idle, groups * step.inputs, *state.shape[4:])
            made = self.geometry.convolved(folded, self._step_kernel(step), axes=step.axes)
            state = made.reshape(len(x), step.idle, groups, step.outputs, *made.shape[2:])
        closed = state.transpose(1, 2)
        closed = closed.reshape(len(x), self._closing_inputs(), *closed.shape[4:])
        return self.geometry.convolved(closed, self._closing(middle[-1].right), self.bias, axes=())

    def _factors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _opening(self, right: bool) -> Float[Tensor, "o i *k"]:
        """The inputs' core: to (groups, idle, active) channels."""
        core: Core = getattr(self, _name((IN,)))
        turned = core.permute(0, 1, 3, 2) if right else core.permute(0, 3, 1, 2)
        return self._pointwise(turned.flatten(0, 2))

    def _closing(self, right: bool) -> Float[Tensor, "o i *k"]:
        """The outputs' core: from (idle, active) channels. Its left bond is the others' right one."""
        core: Core = getattr(self, _name((OUT,)))
        turned = core.permute(0, 2, 3, 1) if right else core.permute(0, 2, 1, 3)
        return self._pointwise(turned.flatten(2).flatten(0, 1))

    def _closing_inputs(self) -> int:
        left, right = self.shape.bonds[self.shape.of_mode(OUT)]
        return self.geometry.groups * left * right

    def _pointwise(self, matrix: Float[Tensor, "o i"]) -> Float[Tensor, "o i *k"]:
        return matrix.reshape(*matrix.shape, *(1 for _ in self.geometry.axes))

    def _step_kernel(self, step: Step) -> Float[Tensor, "o i *k"]:
        """The cores of a step as one kernel along its axes."""
        factors = self._factors()
        joined = arc([factors[core] for core in step.cores])
        axes = [axis - SPATIAL for core in step.cores for axis in self.shape.modes[core]]
        apart = joined.reshape(*joined.shape[:2], *(self.geometry.kernel[axis] for axis in axes), -1)
        along = [2 + axes.index(axis) for axis in sorted(axes)]
        bonds = (apart.ndim - 1, 1) if step.right else (1, apart.ndim - 1)
        sizes = [size if axis in axes else 1 for axis, size in enumerate(self.geometry.kernel)]
        return apart.permute(0, *bonds, *along).reshape(-1, step.inputs, *sizes)


class LowRankConv(FactorisedLayer):
    """Two convolutions in the place of one: `core_in` (groups * q, i, *k), then `core_out` (O, q, *k).

    Raises InvalidShape for factors of another kernel.
    """

    core_out: nn.Parameter
    core_in: nn.Parameter

    def __init__(
        self,
        geometry: Geometry,
        shape: LowRankShape,
        factors: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(geometry, bias)
        second, first = factors
        groups = geometry.groups
        wanted = [
            (groups * shape.out_shape[0], *shape.out_shape[1:]),
            (groups * shape.in_shape[0], *shape.in_shape[1:]),
        ]
        found = [tuple(second.shape), tuple(first.shape)]
        if shape.sizes != geometry.block_shape or wanted != found:
            raise InvalidShape(f"factors {found} of {shape.sizes} are none of {geometry}: give {wanted}")
        self.shape = shape
        self.core_out = nn.Parameter(second.detach().clone())
        self.core_in = nn.Parameter(first.detach().clone())

    def kernel(self) -> Float[Tensor, "o i *k"]:
        """See `FactorisedLayer`."""
        return low_rank_kernel(self.shape, self.core_out, self.core_in).flatten(0, 1)

    def steps(self, plan: str) -> tuple[Step, ...]:
        """See `FactorisedLayer`."""
        return self.shape.steps()

    def stepwise(self, x: Batch, plan: str) -> Batch:
        """See `FactorisedLayer`."""
        between = self.geometry.convolved(x, self.core_in, axes=self.shape.early)
        return self.geometry.convolved(between, self.core_out, self.bias, axes=self.shape.late)

    def _factors(self) -> list[Tensor]:
        return [self.core_out, self.core_in]


class LowRankLinear(LowRankConv):
    """Two linear layers in the place of one: `core_in` (q, I), then `core_out` (O, q)."""


def _name(mode: Mode) -> str:
    if mode in ((OUT,), (IN,)):
        return "core_out" if mode == (OUT,) else "core_in"
    return "core_spatial_" + "".join(str(axis - SPATIAL) for axis in mode)
