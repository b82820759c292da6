"""Volumes that are computed where they are looked at, and cohorts of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Float64, Int16

from benchmarks.cohorts.counters import Axes, generator
from models.errors import InvalidConfig
from models.learning.cohort import Cohort, Inputs
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
        axes = covered(origins, sides)
        z, y, x = (np.clip(axis, 0, n - 1) for axis, n in zip(axes, self.shape, strict=True))
        steps = self.steps[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        found = steps[:, None] * np.float32(STEP)
        return found if (inside := within(axes, self.shape)) is None else found * inside[:, None]

    @property
    def array(self) -> Float32[Array, "Z Y X"]:
        """The whole volume."""
        return self.steps * np.float32(STEP)


@dataclass(frozen=True)
class Split:
    """Numbers of scans to learn from, and to be tested on; ascending, with no patient on both sides."""

    train: Int64
    test: Int64


@dataclass(frozen=True, eq=False)
class MadeCohort:
    """Volumes with an exactly known target; volume i is of the person `patients[i]`."""

    names: tuple[str, ...]
    patients: tuple[str, ...]
    sources: tuple[CubeSource, ...]
    targets: Float64[Array, " n"]
    split: Split
    covariate_names: tuple[str, ...] = ()
    covariates: Float64[Array, "n t"] = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if not self.covariate_names:
            object.__setattr__(self, "covariates", np.zeros((len(self.sources), 0)))

    def __len__(self) -> int:
        return len(self.sources)

    def cohort(self) -> Cohort:
        """One row per volume. Raises InvalidShape where volumes differ in shape."""
        return Cohort(Inputs.of(self.sources, self.covariates), self.patients, self.targets)

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


def split_by(patients: Sequence[str], tested: Sequence[str]) -> Split:
    """Test on all scans of the patients `tested`, learn from all others."""
    side = np.isin(np.array(patients), np.array(tested))
    return Split(np.flatnonzero(~side), np.flatnonzero(side))


def folds(patients: Sequence[str], count: int, seed: int) -> list[Split]:
    """`count` splits; each patient is tested on in one of them. Raises InvalidConfig."""
    people = sorted(set(patients))
    if not 2 <= count <= len(people):
        raise InvalidConfig("folds", count, f"from 2 to the number of patients, {len(people)}")
    order = generator(seed, "folds").permutation(len(people))
    parts = np.array_split(order, count)
    return [split_by(patients, [people[person] for person in part.tolist()]) for part in parts]


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
