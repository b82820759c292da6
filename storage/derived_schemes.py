"""What a compressor is for a volume: codings of its tiles, by the number of its setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.compressors import BOUNDED, COMPRESSORS
from storage.compressors.base import Setting
from storage.compressors.bounded import MOST_DELTA
from storage.compressors.goals import Goal
from storage.derived_coding import Coding, framed, putt, within
from storage.errors import UnreachableQuality
from storage.records import Statistics, StoredVolume

Array = NDArray[Any]

LOSSLESS = tuple(name for name, one in COMPRESSORS.items() if one.lossless)


@dataclass(frozen=True)
class Scheme:
    """A compressor as codings of a volume, by its setting's number; it has none where `scale` is None.

    `name` is what `scheme_of` was asked for, `compressor` what writes the tiles.
    """

    name: str
    compressor: str
    scale: Setting | None
    make: Callable[[float | None], Coding]

    def setting(self, number: float | None) -> dict[str, float]:
        """The setting with its name."""
        return {} if self.scale is None or number is None else {self.scale.name: number}


def scheme_of(name: str, goal: Goal, stored: StoredVolume) -> Scheme:
    """A compressor of `COMPRESSORS` for a volume and a goal. Raises UnsuitableValues, MissingPeer, and
    UnreachableQuality where one that loses something is to lose nothing.
    """
    known = COMPRESSORS[name]
    if goal.kind == "bound" and name == "putt":
        return _bounded(name, goal, np.dtype(stored.dtype))
    scale = known.setting(_extremes(stored.statistics, stored.dtype))
    if scale is None:
        return Scheme(name, name, None, lambda number: framed(name, {}, lossless=True))
    if goal == Goal("bound", 0):
        cure = f"use putt, auto, or one without loss: {', '.join(LOSSLESS)}"
        raise UnreachableQuality(name, str(goal), {}, cure)
    if name == "putt":
        return Scheme(name, name, scale, lambda number: putt(_number(number)))
    return Scheme(name, name, scale, lambda number: framed(name, {scale.name: _number(number)}))


def _bounded(name: str, goal: Goal, dtype: np.dtype[Any]) -> Scheme:
    if dtype.kind in "iu":
        delta = float(min(math.floor(goal.value), MOST_DELTA))
        coding = framed(BOUNDED.name, {"delta": delta}, lossless=delta == 0)
        return Scheme(name, BOUNDED.name, None, lambda number: coding)
    if goal.value == 0:
        return Scheme(name, "blosc", None, lambda number: framed("blosc", {}, lossless=True))
    return Scheme(name, name, None, lambda number: within(goal.value))


def _extremes(statistics: Statistics, dtype: str) -> Array:
    """The least and the largest value: settings go by them."""
    return np.array([statistics.minimum, statistics.maximum]).astype(dtype).reshape(1, 1, 2)


def _number(number: float | None) -> float:
    assert number is not None
    return number
