"""The windows of a box, restored by threads and blended into one: the weighted mean of what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from storage.derived import Box
from workers.restoring.boxes import Bools, Float64
from workers.windows import Window, shape_of, shared, within

AHEAD = 4
"""So many windows for each thread are restored, and wait for their turn."""
T = TypeVar("T")


@dataclass
class Blend:
    """Of a box: `sums` over `weights`."""

    box: Box
    sums: Float64 = field(init=False)
    weights: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros(shape_of(self.box))
        self.weights = np.zeros(shape_of(self.box))

    def add(self, window: Window, values: Float64) -> None:
        """What a window says of its voxels, as far as they lie in the box."""
        part = shared(self.box, window.box)
        weight, place = window.weight(part), within(part, self.box)
        self.sums[place] += weight * values[within(part, window.box)]
        self.weights[place] += weight

    @property
    def told(self) -> Bools:
        """Where a window has said something."""
        return self.weights > 0

    def values(self) -> Float64:
        """0 where none has."""
        return np.divide(self.sums, self.weights, out=np.zeros_like(self.sums), where=self.told)


def blended(
    box: Box,
    windows: Iterable[Window],
    restore: Callable[[Window], tuple[Float64, T]],
    threads: int,
    check: Callable[[], None],
) -> tuple[Blend, list[T]]:
    """What `restore` makes of windows, blended, and what it tells of each one, in their order.

    The same with any number of threads. `check` is called between windows, and cancels by raising.
    """
    blend, told = Blend(box), []
    for window, (values, one) in _restored(windows, restore, threads):
        check()
        blend.add(window, values)
        told.append(one)
    return blend, told


def _restored(
    windows: Iterable[Window], restore: Callable[[Window], T], threads: int
) -> Iterator[tuple[Window, T]]:
    """Each window and what is made of it, in their order."""
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(windows)
        while some := list(itertools.islice(rest, threads * AHEAD)):
            yield from zip(some, pool.map(restore, some), strict=True)
