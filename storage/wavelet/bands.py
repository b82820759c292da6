"""The bands of a level, side by side: where they stand among the coefficients, and in what order they pass.

A band is a number of three bits, z, y and x: 1 where it holds what is fine along that axis. All bands of a
level are one array (z, y, x, band), of even sides: some bands are shorter by one than others, and what lies
beyond a band's end is 0, and is not coded. Places pass in 8 phases, by the parities of z, y and x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.wavelet.lifting import Shape, Split, corners

Int32 = NDArray[np.int32]
Number = TypeVar("Number", bound=np.generic)

ORDER = (0b000, 0b111, 0b110, 0b101, 0b011, 0b001, 0b010, 0b100)
"""Of phases: the two first are farthest apart, and tell most of what is between them."""


def odd_along(number: int) -> tuple[bool, bool, bool]:
    """The bits z, y and x of a band or a phase."""
    return bool(number & 4), bool(number & 2), bool(number & 1)


def phase(stack: NDArray[Number], number: int) -> NDArray[Number]:
    """The places of a phase: a view."""
    z, y, x = odd_along(number)
    return stack[z::2, y::2, x::2]


@dataclass(frozen=True)
class Level:
    """A level of the transform of what has these sides."""

    sides: Shape
    split: Split

    @cached_property
    def bands(self) -> tuple[int, ...]:
        """Those that there are: 7, 3 or 1."""
        missing = sum(4 >> axis for axis in range(3) if not self.split[axis])
        return tuple(band for band in range(1, 8) if not band & missing)

    @cached_property
    def half(self) -> Shape:
        """The sides of a phase."""
        z, y, x = ((length + 1) // 2 for length in self._longest)
        return z, y, x

    @cached_property
    def inside(self) -> NDArray[np.bool_] | None:
        """What belongs to bands, of the array; None where all does."""
        if all(side % (4 if cut else 2) == 0 for side, cut in zip(self.sides, self.split, strict=True)):
            return None
        inside = self.empty().astype(np.bool_)
        for place, band in enumerate(self.bands):
            inside[..., place][self._within(band)] = True
        return inside

    def empty(self) -> Int32:
        """The array, of zeros."""
        z, y, x = self.half
        return np.zeros((2 * z, 2 * y, 2 * x, len(self.bands)), np.int32)

    def taken(self, coefficients: Int32) -> Int32:
        """All bands of the coefficients, as one array."""
        stack = self.empty()
        for place, band in enumerate(self.bands):
            stack[..., place][self._within(band)] = coefficients[self._of(band)]
        return stack

    def put(self, stack: Int32, coefficients: Int32) -> None:
        """Where `taken` found them."""
        for place, band in enumerate(self.bands):
            coefficients[self._of(band)] = stack[..., place][self._within(band)]

    @property
    def _longest(self) -> Shape:
        z, y, x = ((side + 1) // 2 if cut else side for side, cut in zip(self.sides, self.split, strict=True))
        return z, y, x

    def _of(self, band: int) -> tuple[slice, ...]:
        """Its place among the coefficients."""
        axes = zip(odd_along(band), self._longest, self.sides, strict=True)
        return tuple(slice(low, side) if fine else slice(low) for fine, low, side in axes)

    def _within(self, band: int) -> tuple[slice, ...]:
        """Its place in the array."""
        axes = zip(odd_along(band), self._longest, self.sides, strict=True)
        return tuple(slice(side - low if fine else low) for fine, low, side in axes)


def levels_of(shape: Shape, splits: Sequence[Split]) -> list[Level]:
    """All levels, the finest first."""
    return [Level(sides, split) for sides, split in zip(corners(shape, splits), splits, strict=False)]
