"""A factorised convolution as convolutions after one another: how many, of what, and what they cost.

Between the first and the last there are two bonds: one that a convolution works on, and one that idles, as a
part of the batch. From the core of the inputs, cores on its right are applied to the right bond and those on
its left to the left one, until the core of the outputs closes both. Any interleaving of the two is the same
map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from models.convolutions import Geometry
from models.rsdtr.ring import RingShape

OUT, IN, SPATIAL = 0, 1, 2
"""The axes of a kernel (O, I, *k)."""
NOMINAL_SIDE = 64
"""Of an input along each axis, in voxels, where none is given."""
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One convolution: `idle` times from `inputs` to `outputs` channels of a group, along `axes`.

    `cores` are those of a ring that it is made of, `right` which bond it works on.
    """

    inputs: int
    outputs: int
    idle: int
    axes: Sizes
    cores: Sizes = ()
    right: bool = True


@dataclass(frozen=True)
class Cost:
    """Of one sample: multiplications and additions, and the most numbers that a step reads and writes."""

    macs: int
    activation: int


def cost_of(geometry: Geometry, steps: Sequence[Step], spatial: Sizes) -> Cost:
    """What the steps cost for inputs of these spatial sizes."""
    macs, peak, shape = 0, 0, spatial
    for step in steps:
        after = geometry.output_shape(shape, step.axes)
        places = geometry.places(shape, step.axes)
        kernel = prod(geometry.kernel[axis] for axis in step.axes)
        channels = geometry.groups * step.idle
        macs += places * channels * step.inputs * step.outputs * kernel
        touched = step.inputs * prod(shape) + step.outputs * prod(after)
        peak, shape = max(peak, channels * touched), after
    return Cost(macs, peak)


@cache
def ring_steps(shape: RingShape, merged: bool, order: Sizes = ()) -> tuple[Step, ...]:
    """The steps of a ring of a kernel (O, I, *k): a core each, or with neighbours on a side merged.

    `order` is the interleaving: for each step between the first and the last, 1 for the right side.
    """
    start, bonds = shape.of_mode(IN), shape.bonds
    left, right = bonds[start]
    steps = [Step(shape.sizes[IN], left * right, 1, (), (start,))]
    for cores, on_right in _taken(shape, merged, order):
        axes = tuple(sorted(axis - SPATIAL for core in cores for axis in shape.modes[core]))
        after = bonds[cores[-1]][1] if on_right else bonds[cores[0]][0]
        if on_right:
            steps.append(Step(right, after, left, axes, cores, True))
            right = after
        else:
            steps.append(Step(left, after, right, axes, cores, False))
            left = after
    steps.append(Step(left * right, shape.sizes[OUT], 1, (), (shape.of_mode(OUT),)))
    return tuple(steps)


def sides(shape: RingShape, merged: bool) -> tuple[list[Sizes], list[Sizes]]:
    """The cores that are applied on the left and on the right, in turn; merged ones together."""
    d, start, end = len(shape.modes), shape.of_mode(IN), shape.of_mode(OUT)
    right = [(start + k) % d for k in range(1, (end - start) % d)]
    left = [(start - k) % d for k in range(1, (start - end) % d)]
    if merged:
        return [tuple(reversed(left))] if left else [], [tuple(right)] if right else []
    return [(core,) for core in left], [(core,) for core in right]


def best_steps(
    geometry: Geometry, shape: RingShape, spatial: Sizes, *, merged: bool
) -> tuple[tuple[Step, ...], Cost]:
    """The interleaving of least MACs: strided axes early, widening ones late."""
    left, right = sides(shape, merged)
    choices = [
        (steps, cost_of(geometry, steps, spatial))
        for order in interleavings(len(left), len(right))
        for steps in [ring_steps(shape, merged, order)]
    ]
    return min(choices, key=lambda choice: (choice[1].macs, choice[1].activation))


@cache
def interleavings(left: int, right: int) -> tuple[Sizes, ...]:
    """All ways to take so many from the left (0) and from the right (1)."""
    if not left or not right:
        return ((0,) * left + (1,) * right,)
    return tuple((0, *rest) for rest in interleavings(left - 1, right)) + tuple(
        (1, *rest) for rest in interleavings(left, right - 1)
    )


def _taken(shape: RingShape, merged: bool, order: Sizes) -> Iterator[tuple[Sizes, bool]]:
    left, right = sides(shape, merged)
    turns = order or interleavings(len(left), len(right))[0]
    sources = (iter(left), iter(right))
    for turn in turns:
        yield next(sources[turn]), bool(turn)


def nominal(geometry: Geometry) -> Sizes:
    """Sizes of inputs where none are given: large enough that borders hardly count."""
    return tuple(
        max(NOMINAL_SIDE, 2 * d * k) for d, k in zip(geometry.dilation, geometry.kernel, strict=True)
    )
