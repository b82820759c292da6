"""A box without what is no stronger than its noise, and how strong the noise of a volume is.

Of each window those directions of its tensor train are left that stand above the edge of the noise's singular
values (models/putt/denoising.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from models.putt.denoising import Edge, denoised, noise_deviation
from models.putt.factorising import tt_svd_by_gram
from models.putt.morton import from_morton
from storage.compressors.base import as_dtype
from storage.derived import Box
from storage.jobs import Progress
from storage.putt.digits import Digits
from storage.records import StoredVolume
from workers.context import JobContext
from workers.restoring.blending import blended
from workers.restoring.boxes import Array, Bools, Boxes, Float64, Frame, Numbers, frames_of
from workers.restoring.filling import filled_box
from workers.windows import Shape, Window, Windows, shortened, within

RULE = "marchenko_pastur"
ESTIMATE_SIDE = 64
ESTIMATE_BYTES = 4 * 8 * ESTIMATE_SIDE**3
"""Float64 arrays of such a side."""
MOST_ESTIMATES = 256
"""Tiles of a volume whose noise is estimated, evenly spread."""
ESTIMATING = "estimating the noise"


def sides_of(shape: Shape, tile: int) -> Shape:
    """Powers of two: nothing has to be made up beyond the volume's faces."""
    z, y, x = (min(tile, 1 << length.bit_length() - 1) for length in shape)
    return z, y, x


def deviations(context: JobContext, stored: StoredVolume, source: Boxes) -> list[list[float]]:
    """Of the noise, of each channel or of the whole volume: what its tiles tell."""
    shape, frames = stored.grid.shape, frames_of(stored)
    tiles = Windows.over(shape, shortened(shape, ESTIMATE_SIDE))
    total = len(tiles) * len(frames)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_ESTIMATES)).astype(np.int64)).tolist()
    found: list[list[float]] = [[] for _ in range(len(frames) if stored.axes[0] == "c" else 1)]
    for done, number in enumerate(chosen):
        context.report(Progress(ESTIMATING, done, len(chosen), "tiles"))
        frame, tile = frames[number // len(tiles)], tiles[number % len(tiles)]
        sigma = _noise(source.values(frame, tile.box), source.gaps(frame, tile.box))
        if sigma > 0:
            found[(frame or 0) if len(found) > 1 else 0].append(sigma)
    return found


@dataclass(eq=False)
class Denoising:
    """Gives boxes of a volume. `sigmas`: of each channel, or one; `share`: of a window, with the next one.

    `check` is called often, and cancels by raising.
    """

    stored: StoredVolume
    source: Boxes
    sigmas: list[float]
    tile: int
    share: float
    device: str
    threads: int
    check: Callable[[], None]
    _windows: Windows = field(init=False)

    def __post_init__(self) -> None:
        shape, statistics = self.stored.grid.shape, self.stored.statistics
        self._windows = Windows.over(shape, sides_of(shape, self.tile), self.share)
        if statistics.minimum == statistics.maximum:
            self.sigmas = [0.0] * len(self.sigmas)

    def __call__(self, frame: Frame, box: Box) -> tuple[Array, Numbers]:
        """The box, and what was done to it. Gaps keep what stands in for them. Raises CorruptVolume."""
        sigma = self.sigmas[frame or 0] if len(self.sigmas) > 1 else self.sigmas[0]
        if sigma == 0:
            return self.source.values(frame, box), _numbers([], np.zeros(0))
        around = self._windows.around(box)
        values, gaps = self.source.values(frame, around), self.source.gaps(frame, around)

        def one(window: Window) -> tuple[Float64, int]:
            place = within(window.box, around)
            return self._restored(values[place], gaps[place], sigma)

        blend, ranks = blended(box, self._windows.touching(box), one, self.threads, self.check)
        place = within(box, around)
        before = values[place]
        made = np.where(gaps[place], before, as_dtype(blend.values(), np.dtype(self.stored.dtype)))
        return made, _numbers(ranks, made.astype(np.float64) - before)

    def _restored(self, values: Array, gaps: Bools, sigma: float) -> tuple[Float64, int]:
        """A window without noise, and the largest rank of its train."""
        known = values.astype(np.float64)
        if gaps.all():
            return known, 0
        return _cut(filled_box(known, ~gaps, self.device) if gaps.any() else known, sigma, self.device)


def _numbers(ranks: list[int], removed: Float64) -> Numbers:
    return {
        "windows": len(ranks),
        "ranks": sum(ranks),
        "max_rank": max(ranks, default=0),
        "changed": int(np.count_nonzero(removed)),
        "squares": float((removed**2).sum()),
    }


def _cut(values: Float64, sigma: float, device: str) -> tuple[Float64, int]:
    """A window of sides 2^a, by the directions of its train that are stronger than noise."""
    if len(set(values.shape)) == 1 and len(values) > 1:
        train = denoised(torch.from_numpy(values).to(device), sigma=sigma, rule=RULE).train
        return from_morton(train.full()).cpu().numpy(), max(train.ranks, default=1)
    z, y, x = values.shape
    digits = Digits.of((z, y, x))
    by_digits = torch.from_numpy(digits.split(values)).to(device)
    train, _ = tt_svd_by_gram(by_digits, floor=Edge(sigma, RULE))
    return digits.joined(train.full().cpu().numpy()), max(train.ranks, default=1)


def _noise(values: Array, gaps: Bools) -> float:
    """The deviation of a tile's noise; 0 where nothing tells. Blocks with gaps are made to tell nothing."""
    known = values.astype(np.float64)
    for corner in itertools.product((0, 1), repeat=3):
        touched = gaps[tuple(slice(first, None, 2) for first in corner)]
        z, y, x = (2 * places for places in np.nonzero(touched))
        for dz, dy, dx in itertools.product((0, 1), repeat=3):
            inside = (z + dz < known.shape[0]) & (y + dy < known.shape[1]) & (x + dx < known.shape[2])
            known[z[inside] + dz, y[inside] + dy, x[inside] + dx] = 0
    return noise_deviation(torch.from_numpy(known))
