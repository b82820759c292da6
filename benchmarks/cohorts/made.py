"""Volumes that are computed where they are looked at, and cohorts of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64, Int16
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.cohorts.counters import Axes, generator
from benchmarks.cohorts.heads import Head
from models.errors import InvalidConfig
from models.learning.cohort import Cohort, Inputs
from models.learning.folds import Split
from models.types import Array, CubeSource, Int64, Size

STEP = 2.0**-10
"""Values are multiples of it, as a scanner's are: 16 bits hold them, and float32 holds them exactly."""
AT_ONCE = 2**17
"""Voxels that are computed together."""


class Procedural(ABC):
    """A volume of one channel whose boxes are computed when they are asked for; 0 beyond its border.

    A voxel's value is the same, to the last bit, whatever box it is asked for in.
    """

    channels = 1

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    @abstractmethod
    def values(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """The values in boxes, before they are rounded; each of `axes` ascends by one."""

    def cubes(self, origins: Int64, size: Size) -> Float32[Array, "n 1 Z Y X"]:
        """Boxes with the lowest corners `origins` (n, 3), multiples of `STEP`."""
        sides = (size,) * 3 if isinstance(size, int) else size
        found = np.empty((len(origins), 1, *sides), np.float32)
        for boxes, planes in _pieces(len(origins), sides):
            found[boxes, 0, planes] = self._steps(covered(origins[boxes], sides, planes))
        return np.multiply(found, np.float32(STEP), out=found)

    def dense(self) -> Kept:
        """The same volume in memory, made piece by piece."""
        steps = np.empty(self.shape, np.int16)
        origin = np.zeros((1, 3), np.int64)
        for _, planes in _pieces(1, self.shape):
            steps[planes] = self._steps(covered(origin, self.shape, planes))[0]
        return Kept(steps)

    def _steps(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """The values in multiples of `STEP`, which 16 bits hold."""
        steps = np.rint(self.values(axes) * np.float32(1 / STEP))
        np.clip(steps, -32768, 32767, out=steps)
        return steps if (inside := within(axes, self.shape)) is None else steps * inside


class Kept:
    """A volume of one channel in memory, as multiples of `STEP`; 0 beyond its border."""

    channels = 1

    def __init__(self, steps: Int16[Array, "Z Y X"]) -> None:
        self.steps = steps
        self.shape: tuple[int, int, int] = steps.shape

    def cubes(self, origins: Int64, size: Size) -> Float32[Array, "n 1 Z Y X"]:
        """Boxes with the lowest corners `origins` (n, 3)."""
        sides = (size,) * 3 if isinstance(size, int) else size
        return boxes_of(self.steps, origins, sides)[:, None] * np.float32(STEP)

    @property
    def array(self) -> Float32[Array, "Z Y X"]:
        """The whole volume."""
        return self.steps * np.float32(STEP)


@dataclass(frozen=True, eq=False)
class MadeCohort:
    """Volumes with an exactly known target; volume i is of the person `patients[i]`.

    `split` is the protocol's, with nobody to calibrate on. Nothing is known beside the scan: no covariates.
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    sources: tuple[CubeSource, ...]
    targets: Float64[Array, " n"]
    split: Split

    def __len__(self) -> int:
        return len(self.sources)

    def cohort(self) -> Cohort:
        """One row per volume. Raises InvalidShape where volumes differ in shape."""
        return Cohort(Inputs.of(self.sources), self.patients, self.targets)

    def dense(self) -> MadeCohort:
        """The same cohort with all its volumes in memory: two bytes per voxel."""
        kept = [source.dense() if isinstance(source, Procedural) else source for source in self.sources]
        return replace(self, sources=tuple(kept))


@dataclass(frozen=True)
class Protocol:
    """How many people are learned from, how many volumes each of them gives, and how many are tested on.

    The default is of 33 people: 22 x 9 = 198 volumes to learn from, 102 of 11 others to test on (9 or 10
    each). Who is on which side is drawn from a seed.
    """

    train_people: int = 22
    train_volumes: int = 9
    test_volumes: int = 102

    def counts(self, people: Sequence[str], seed: int) -> tuple[list[int], list[bool]]:
        """How many volumes each person gives, and who is tested on. Raises InvalidConfig."""
        others = len(people) - self.train_people
        if not 0 < others <= self.test_volumes:
            allowed = f"below the {len(people)} people, with a test volume for each of the others"
            raise InvalidConfig("protocol.train_people", self.train_people, allowed)
        order = generator(seed, "split").permutation(len(people))
        tested, counts = [False] * len(people), [self.train_volumes] * len(people)
        for rank, person in enumerate(order[self.train_people :].tolist()):
            tested[person] = True
            counts[person] = self.test_volumes // others + (rank < self.test_volumes % others)
        return counts, tested


MAIN = Protocol()


Made = tuple[Procedural, float]
"""A volume and its target."""
Maker = Callable[[Head], Callable[[np.random.Generator], Made]]
"""What a head is made ready for once, and then one volume is drawn of."""


def assembled(kind: str, heads: Sequence[Head], protocol: Protocol, seed: int, maker: Maker) -> MadeCohort:
    """A cohort of volumes on heads. A volume depends on the seed, the head's name and its number there."""
    counts, tested = protocol.counts([head.name for head in heads], seed)
    names, patients, made = [], [], []
    for head, count in zip(heads, counts, strict=True):
        of_draw = maker(head)
        made += [of_draw(generator(seed, kind, head.name, number)) for number in range(count)]
        names += [f"{head.name}-{number}" for number in range(count)]
        patients += [head.name] * count
    sources, targets = zip(*made, strict=True)
    test, nobody = np.repeat(tested, counts), np.empty(0, np.int64)
    split = Split(np.flatnonzero(~test), nobody, np.flatnonzero(test))
    return MadeCohort(tuple(names), tuple(patients), sources, np.array(targets), split)


def boxes_of(array: Array, origins: Int64, sides: tuple[int, int, int]) -> Array:
    """Boxes (n, Z, Y, X) of an array (z, y, x) in memory; 0 beyond its border."""
    found = np.zeros((len(origins), *sides), array.dtype)
    whole = ((origins >= 0) & (origins + sides <= array.shape)).all(axis=1)
    if whole.any():
        z, y, x = origins[whole].T
        found[whole] = sliding_window_view(array, sides)[z, y, x]
    for box in np.flatnonzero(~whole).tolist():
        low = np.clip(origins[box], 0, array.shape)
        high = np.clip(origins[box] + sides, low, array.shape)
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        target = tuple(slice(a, b) for a, b in zip(low - origins[box], high - origins[box], strict=True))
        if (high > low).all():
            found[box][target] = array[source]
    return found


def covered(origins: Int64, sides: tuple[int, int, int], planes: slice = slice(None)) -> Axes:
    """The places along each axis that boxes cover, in z only some planes of each."""
    spans = (np.arange(sides[0])[planes], np.arange(sides[1]), np.arange(sides[2]))
    z, y, x = (origins[:, k, None] + span for k, span in enumerate(spans))
    return z, y, x


def within(axes: Axes, shape: tuple[int, int, int]) -> Array | None:
    """Which places of boxes are in the volume, (n, Z, Y, X); None where all are."""
    z, y, x = ((axis >= 0) & (axis < n) for axis, n in zip(axes, shape, strict=True))
    if z.all() and y.all() and x.all():
        return None
    return np.asarray(z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :])


def _pieces(count: int, sides: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    """Parts of `count` boxes of about `AT_ONCE` voxels: (boxes, planes of each)."""
    depth, plane = sides[0], max(1, sides[1] * sides[2])
    planes = min(depth, max(1, AT_ONCE // plane))
    boxes = max(1, AT_ONCE // max(1, planes * plane))
    for box in range(0, count, boxes):
        for z in range(0, depth, planes):
            yield slice(box, box + boxes), slice(z, z + planes)
