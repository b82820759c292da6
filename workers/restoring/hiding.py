"""Observed voxels that are hidden from what fills a volume, and known again afterwards.

One voxel in 200 and one block of 4 x 4 x 4 in 200: what the filling errs there is the certificate of the very
filling that is published. Chosen by the place alone, so that every box that holds a voxel agrees on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.derived import Box
from workers.restoring.boxes import Bools
from workers.windows import Shape

ONE_IN, BLOCK = 200, 4
"""Of the observed voxels, and of blocks of this side, that are hidden."""
KINDS = ("scattered", "blocks")


def hidden(shape: Shape, box: Box, seed: int) -> dict[str, Bools]:
    """Which voxels of a box of a frame are hidden if they were observed, for each of `KINDS`."""
    return {kind: _chosen(kind, shape, box, seed) for kind in KINDS}


def _chosen(kind: str, shape: Shape, box: Box, seed: int) -> Bools:
    side = BLOCK if kind == "blocks" else 1
    z, y, x = (np.arange(part.start, part.stop, dtype=np.uint64) // np.uint64(side) for part in box)
    _, height, width = (np.uint64(length) for length in shape)
    keys = (z[:, None, None] * height + y[:, None]) * width + x
    drawn = _mixed(_mixed(np.uint64(2 * seed + KINDS.index(kind))) ^ keys)
    chosen: Bools = drawn < np.uint64((1 << 64) // ONE_IN)
    return chosen


def _mixed(keys: Any) -> Any:
    """Numbers of 64 bits that look drawn: SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        keys = keys + np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ keys >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ keys >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return keys ^ keys >> np.uint64(31)
