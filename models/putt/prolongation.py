"""Twice as many voxels along each axis, applied to the cores of a train: the paper's prolongation, and ours.

Along one axis an output place is 2 y + b, and a stencil weighs the inputs y + s by w[b, s]. On binary digits
the shift s is a carry from the finest digit up: with output bit b_out and incoming carry s, z = b_out + s has
the input bit z mod 2 and the outgoing carry floor(z / 2). An operator of as many digits as the train has one
bond value per shift; what is left of the coarsest digit selects the carry 0, so that inputs beyond a face
count as 0. Where the border's voxel is repeated beyond the face instead, two more values of the bond carry
the terms of the first voxel (all bits 0) and of the last one (all bits 1).

`CENTRED`: cells of half the size lie a quarter from their cell's centre, so w = 3/4 for the own cell and 1/4
for the neighbour on that side. It repeats constants, and functions linear in the places away from the faces,
exactly; pooled again by means it gives v + (v[y-1] - 2 v[y] + v[y+1]) / 8 along each axis.
`CONSTANT`: each cell is repeated; pooled again it gives v itself, and no rank grows.
`SHIPPED`: what the authors' code computes, fine[2y] = v[y] and fine[2y+1] = (v[y] + v[y-1]) / 2, with zeros
beyond the face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidShape
from models.putt.factorising import rank_caps
from models.putt.morton import MODE
from models.tt.rounding import rounded
from models.tt.train import TensorTrain

REDUNDANT = 1e-13
"""Of the norm: what rounding may leave out between two axes, where nothing else does."""


@dataclass(frozen=True)
class Stencil:
    """w[b, s]: the weight in output 2 y + b of input y + s. With `repeat` the border goes on beyond a face.

    Shifts are -1, 0 and 1; weights of the shift -1 at b = 1, and of 1 at b = 0, may not reach over a
    repeated face.
    """

    weights: Mapping[tuple[int, int], float]
    repeat: bool

    @cached_property
    def shifts(self) -> tuple[int, ...]:
        """The carries that there are: those of the weights, and 0."""
        return tuple(sorted({0, *(shift for _, shift in self.weights)}))

    @cached_property
    def faces(self) -> tuple[int, ...]:
        """Bits of the first and the last voxel, where their terms are carried."""
        return (0, 1) if self.repeat and len(self.shifts) > 1 else ()

    @property
    def bond(self) -> int:
        """The operator's rank along one axis."""
        return len(self.shifts) + len(self.faces)

    @cached_property
    def core(self) -> Float64[Tensor, "carry out in shift"]:
        """The operator's core at every digit."""
        core = torch.zeros(self.bond, 2, 2, self.bond, dtype=torch.float64)
        for right, shift in enumerate(self.shifts):
            for out in (0, 1):
                carry, read = divmod(out + shift, 2)
                core[self.shifts.index(carry), out, read, right] = 1
        for place, bit in enumerate(self.faces, len(self.shifts)):
            core[place, bit, bit, place] = 1
        return core

    @cached_property
    def first(self) -> Float64[Tensor, " carry"]:
        """What stands to the left of the coarsest digit."""
        chosen = [shift == 0 for shift in self.shifts] + [True] * len(self.faces)
        return torch.tensor(chosen, dtype=torch.float64)

    @cached_property
    def last(self) -> Float64[Tensor, "shift b"]:
        """The core of the new, finest digit."""
        core = torch.zeros(self.bond, 2, dtype=torch.float64)
        for (bit, shift), weight in self.weights.items():
            core[self.shifts.index(shift), bit] = weight
        for place, bit in enumerate(self.faces, len(self.shifts)):
            core[place, bit] = self.weights.get((bit, 2 * bit - 1), 0.0)
        return core


CENTRED = Stencil({(0, 0): 3 / 4, (0, -1): 1 / 4, (1, 0): 3 / 4, (1, 1): 1 / 4}, repeat=True)
CENTRED_ZERO = Stencil(CENTRED.weights, repeat=False)
CONSTANT = Stencil({(0, 0): 1.0, (1, 0): 1.0}, repeat=True)
SHIPPED = Stencil({(0, 0): 1.0, (1, 0): 1 / 2, (1, -1): 1 / 2}, repeat=False)


def prolonged(
    train: TensorTrain, stencil: Stencil = CENTRED, *, max_rank: int | Sequence[int] | None = None
) -> TensorTrain:
    """The train of a cube of side 2^L as that of the prolonged one, of side 2^(L+1).

    Axis after axis, rounded after each: without `max_rank` nothing but redundancy is left out. With it the
    last rounding keeps these ranks at most, one for all or one for each of the L bonds, and the earlier ones
    twice as many. Raises InvalidShape for modes other than 8.
    """
    if train.batch or set(train.modes) != {MODE}:
        raise InvalidShape(f"a cube's train has modes of {MODE}, not {train.modes}")
    caps = rank_caps((*train.modes, MODE), max_rank)
    if stencil.bond == 1:
        last = stencil.last.to(train.cores[0].device)
        tail = torch.einsum("i,j,k->ijk", *(last[0],) * 3).reshape(1, MODE, 1)
        return _capped(TensorTrain((*train.cores, tail)), max_rank, caps)
    widest = None if max_rank is None else 2 * max(caps)
    grown = TensorTrain((*train.cores, train.cores[0].new_ones(1, 1, 1)))
    for axis in range(3):
        grown = rounded(_along(grown, stencil, axis), eps=REDUNDANT, max_rank=widest)
    return _capped(grown, max_rank, caps)


def _capped(train: TensorTrain, max_rank: int | Sequence[int] | None, caps: Sequence[int]) -> TensorTrain:
    return train if max_rank is None else rounded(train, max_rank=caps)


def _along(train: TensorTrain, stencil: Stencil, axis: int) -> TensorTrain:
    """The operator along one axis: on that bit of every digit, and on the unfinished last core a bit more."""
    device = train.cores[0].device
    operator, first, last = (part.to(device) for part in (stencil.core, stencil.first, stencil.last))
    cores = [_applied(core, operator, axis) for core in train.cores[:-1]]
    cores[0] = torch.einsum("c,clnr->lnr", first, cores[0].reshape(stencil.bond, 1, MODE, -1))
    tail = torch.einsum("sb,ltr->sltbr", last, train.cores[-1]).flatten(2, 3).flatten(0, 1)
    return TensorTrain((*cores, tail))


def _applied(core: Tensor, operator: Tensor, axis: int) -> Tensor:
    """One core of the operator on one of the train: bonds multiply."""
    left, _, right = core.shape
    bits = core.reshape(left, 2**axis, 2, 2 ** (2 - axis), right)
    return torch.einsum("coid,laibr->claobdr", operator, bits).reshape(
        len(operator) * left, MODE, len(operator) * right
    )


def prolonged_cube(cube: Float[Tensor, "z y x"], stencil: Stencil = CENTRED) -> Float[Tensor, "z2 y2 x2"]:
    """The same, of a dense cube."""
    for axis in range(3):
        size = cube.shape[axis]
        sums = [torch.zeros_like(cube), torch.zeros_like(cube)]
        for (bit, shift), weight in stencil.weights.items():
            places = torch.arange(size, device=cube.device) + shift
            inside = places.clamp(0, size - 1)
            term = weight * cube.index_select(axis, inside)
            if not stencil.repeat:
                shape = [1, 1, 1]
                shape[axis] = size
                term = term * (places == inside).reshape(shape)
            sums[bit] = sums[bit] + term
        cube = torch.stack(sums, dim=axis + 1).flatten(axis, axis + 1)
    return cube


def padded_ranks(
    train: TensorTrain, max_rank: int | Sequence[int], *, seed: int, noise: float = 0.02
) -> TensorTrain:
    """The train with ranks up to the caps: what truncation lost, descent can find again.

    The new entries are normal, of `noise` times their core's mean magnitude, drawn from the seed; cores are
    first brought to one scale, so that no core's noise drowns another's entries.
    """
    caps = (1, *rank_caps(train.modes, max_rank), 1)
    cores = []
    for k, core in enumerate(balanced(train).cores):
        left, n, right = core.shape
        shape = (max(left, caps[k]), n, max(right, caps[k + 1]))
        generator = torch.Generator().manual_seed(seed * len(train.modes) + k)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(core.device)
        whole = noise * core.abs().mean() * drawn
        whole[:left, :, :right] = core
        cores.append(whole)
    return TensorTrain(tuple(cores))


def balanced(train: TensorTrain) -> TensorTrain:
    """The same tensor with cores of one root mean square; zeros stay what they are."""
    scales = torch.stack([core.square().mean().sqrt() for core in train.cores])
    if not bool((scales > 0).all()):
        return train
    common = scales.log().mean().exp()
    return TensorTrain(tuple(core * (common / own) for core, own in zip(train.cores, scales, strict=True)))
