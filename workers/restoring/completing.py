"""A box without gaps: windows complete what differs from the overview (models/putt/completion.py).

Where nothing was observed anywhere near, the difference is held at 0. The least and the greatest observed
value bound what is filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from models.putt.completion import complete
from models.putt.morton import from_morton
from storage.compressors.base import as_dtype
from storage.derived import Box
from workers.restoring.blending import Blend, blended
from workers.restoring.boxes import Array, Bools, Float64, Frame, Numbers
from workers.restoring.hiding import KINDS, hidden
from workers.restoring.observed import Observed
from workers.restoring.overview import Overview, far_from
from workers.windows import Shape, Window, Windows, shortened, within

SHARED = 1 / 4
"""Of a window's side, with the next one."""
THIN, THIN_TILE = 16, 32
"""Of a volume that is thinner than this, the side of windows at most: they are completed as cubes."""
SOURCES = ("train", "smooth", "pyramid", "overview")
"""By which a window is told."""
NUMBERS = (*SOURCES, *(f"{kind}_{what}" for kind in KINDS for what in ("voxels", "squares")), "range")
"""Told of a box: windows by source, errors at hidden voxels, and the range of observed values."""


def sides_of(shape: Shape, tile: int) -> Shape:
    """Of windows of a volume."""
    return shortened(shape, min(tile, THIN_TILE) if min(shape) < THIN else tile)


@dataclass(frozen=True)
class CompletingConfig:
    """Side of windows, rank of their trains (None: found by hidden voxels), whether observed voxels stay."""

    tile: int
    rank: int | None
    keep_observed: bool
    seed: int


@dataclass(eq=False)
class Completing:
    """Gives boxes of a volume of this shape. `check` is called often, and cancels by raising."""

    shape: Shape
    observed: Observed
    config: CompletingConfig
    device: str
    threads: int
    check: Callable[[], None]
    _windows: Windows = field(init=False)
    _overview: tuple[Frame, Overview] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._windows = Windows.over(self.shape, sides_of(self.shape, self.config.tile), SHARED)

    def __call__(self, frame: Frame, box: Box) -> tuple[Array, Numbers]:
        """The box, and its `NUMBERS`. Raises CorruptVolume."""
        before = self.observed.source.values(frame, box)
        wanted = ~self.observed(frame, box) | (not self.config.keep_observed)
        if not wanted.any():
            return before, dict.fromkeys(NUMBERS, 0)
        overview, around = self._overview_of(frame), self._windows.around(box)
        values, seen = self.observed.source.values(frame, around), self.observed(frame, around)
        secret = hidden(self.shape, around, self.config.seed)
        rest = seen & ~secret["scattered"] & ~secret["blocks"]

        def one(window: Window) -> tuple[Float64, str]:
            place = within(window.box, around)
            return self._completed(values[place], rest[place], overview.at(window.box))

        touching = (window for window in self._windows.touching(box) if wanted[window.part(box)].any())
        blend, sources = blended(box, touching, one, self.threads, self.check)
        told = np.clip(blend.values(), overview.low, overview.high)
        place = within(box, around)
        numbers = {
            **{source: float(count) for source, count in Counter(sources).items()},
            **_errors(told - before, blend, {kind: (seen & secret[kind])[place] for kind in KINDS}),
            "range": overview.high - overview.low,
        }
        made = np.where(wanted, as_dtype(told, before.dtype), before)
        return made, dict.fromkeys(NUMBERS, 0.0) | numbers

    def _completed(self, values: Array, known: Bools, overview: Float64) -> tuple[Float64, str]:
        """A window, and what told it."""
        if not known.any():
            return overview, "overview"
        rest = np.where(known, values - overview, 0)
        found = complete(
            torch.from_numpy(rest).to(self.device),
            torch.from_numpy(known | far_from(known)).to(self.device),
            rank=self.config.rank,
            seed=self.config.seed,
        )
        part = tuple(slice(length) for length in values.shape)
        told = found.values if self.config.keep_observed else from_morton(found.train.full())[part]
        return told.cpu().numpy() + overview, found.source

    def _overview_of(self, frame: Frame) -> Overview:
        """Without what is hidden, unless nothing else was observed. That of one frame is kept."""
        if self._overview is None or self._overview[0] != frame:
            self._overview = None

            def read(box: Box, whole: bool = False) -> tuple[Array, Bools]:
                self.check()
                seen = self.observed(frame, box)
                for secret in () if whole else hidden(self.shape, box, self.config.seed).values():
                    seen &= ~secret
                return self.observed.source.values(frame, box), seen

            made = Overview.of(self.shape, read, self.device)
            made = made or Overview.of(self.shape, lambda box: read(box, whole=True), self.device)
            assert made is not None, "frames without an observed voxel were refused"
            self._overview = frame, made
        return self._overview[1]


def _errors(off: Array, blend: Blend, secret: dict[str, Bools]) -> dict[str, float]:
    """At the voxels that were hidden, as far as windows told them."""
    found: dict[str, float] = {}
    for kind, chosen in secret.items():
        errors = off[chosen & blend.told]
        found |= {f"{kind}_voxels": errors.size, f"{kind}_squares": float((errors**2).sum())}
    return found
