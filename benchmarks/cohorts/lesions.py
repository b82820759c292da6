"""The cohort *spots*: which share of the small lesions lies near the ventricles?

Each volume has K = 24 lesions (dark core, bright rim) and K decoys (bright core, dark rim) in the deep white
matter, all about two voxels wide and of zero sum. n ~ U{0, ..., K} lesions lie within 10 mm of the ventricles
and K - n beyond 14 mm; of the decoys K - n and n. The target is n / K: known exactly, for the volume is made
from it. There are always K spots near and K far, K dark and K bright: it takes polarity (detail) and place
(context) together, and every spot, which sparse sampling is unlikely to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32

from benchmarks.cohorts import counters
from benchmarks.cohorts.counters import Axes
from benchmarks.cohorts.heads import Head, base_heads
from benchmarks.cohorts.lattices import Stretched, shrunk
from benchmarks.cohorts.made import MAIN, Made, MadeCohort, Maker, Procedural, Protocol, assembled
from models.errors import InvalidConfig
from models.types import Array, Int64

NEAR_MM, FAR_MM = 10.0, 14.0
AMPLITUDE, JITTER, NOISE = 0.3, 0.2, 0.01
TRIED = 4096
"""Places in a zone among which spots are chosen."""
REACH = 3
"""Voxels from a spot's centre to its border; other centres are farther away than that."""


def _spot() -> Float32[Array, "7 7 7"]:
    """(1 - r^2 / 3) exp(-r^2 / 2) less its mean, 1 at the centre: zero in the sum."""
    square = (np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1, -REACH : REACH + 1] ** 2).sum(axis=0)
    hat = (1 - square / 3) * np.exp(-square / 2)
    hat -= hat.mean()
    return np.asarray(hat / hat.max(), np.float32)


SPOT = _spot()


class Deep:
    """A head at `size`^3, and where in it spots may lie."""

    def __init__(self, head: Head, size: int) -> None:
        if size < 2 * REACH + 2:
            raise InvalidConfig("size", size, f"at least {2 * REACH + 2}")
        self.head, self.size = head, size
        self.t1 = Stretched(shrunk(head.t1, size), (size,) * 3)

    @cached_property
    def zones(self) -> tuple[Bool[Array, "Z Y X"], Bool[Array, "Z Y X"]]:
        """Which of the head's own voxels are deep white matter near the ventricles, and far from them."""
        distance = distance_to(self.head.ventricles, self.head.spacing, FAR_MM + max(self.head.spacing))
        deep = eroded(self.head.white_matter)
        return deep & (distance < NEAR_MM), deep & (distance > FAR_MM)

    def places(self, count: int, draw: np.random.Generator) -> Int64:
        """`count` voxels with their centres near the ventricles, then as many far from them: (2 count, 3).

        Raises InvalidConfig where the head does not hold as many at this size.
        """
        found: list[Int64] = []
        for name, zone in zip(("near", "far from"), self.zones, strict=True):
            cells = draw.permutation(np.argwhere(zone))[:TRIED]
            voxels = ((cells + draw.uniform(size=cells.shape)) / zone.shape * self.size).astype(np.int64)
            own = ((voxels + 0.5) / self.size * zone.shape).astype(np.int64)
            chosen = self._apart(voxels[zone[tuple(own.T)]], found, count)
            if len(chosen) < count:
                held = f"{self.head.name} holds only {len(chosen)} {name} the ventricles at {self.size}^3"
                raise InvalidConfig("lesions", count, f"fewer, or the size larger: {held}")
            found += chosen
        return np.array(found)

    def _apart(self, candidates: Int64, taken: Sequence[Int64], count: int) -> list[Int64]:
        """The first `count` that lie inside and apart from each other and from those taken."""
        inside = ((candidates >= REACH) & (candidates < self.size - REACH)).all(axis=1)
        left, chosen = candidates[inside], list[Int64]()
        for voxel in taken:
            left = left[np.abs(left - voxel).max(axis=1) > REACH]
        while len(left) and len(chosen) < count:
            chosen.append(left[0])
            left = left[np.abs(left - left[0]).max(axis=1) > REACH]
        return chosen


class Spots(Procedural):
    """One volume: `places` (s, 3) are the spots' centres, `heights` (s,) what they add there."""

    def __init__(self, scene: Deep, places: Int64, heights: Float32[Array, " s"], seed: int) -> None:
        super().__init__((scene.size,) * 3)
        self.scene, self.places, self.heights, self._seed = scene, places, heights, seed

    def values(self, axes: Axes) -> Float32[Array, "n Z Y X"]:
        """Head, spots, and a scanner's noise."""
        found = self.scene.t1(axes)
        found += np.float32(NOISE) * counters.bells(self._seed, axes)
        first = np.stack([axis[:, 0] for axis in axes], axis=1)
        sides = np.array([axis.shape[1] for axis in axes])
        low = self.places - REACH - first[:, None]
        for box, spot in np.argwhere(((low < sides) & (low + len(SPOT) > 0)).all(axis=2)).tolist():
            begin, end = np.maximum(low[box, spot], 0), np.minimum(low[box, spot] + len(SPOT), sides)
            here = tuple(slice(a, b) for a, b in zip(begin.tolist(), end.tolist(), strict=True))
            offset = low[box, spot].tolist()
            part = tuple(slice(at.start - k, at.stop - k) for at, k in zip(here, offset, strict=True))
            found[box][here] += self.heights[spot] * SPOT[part]
        return found


def spots(
    size: int,
    *,
    lesions: int = 24,
    heads: Sequence[Head] | None = None,
    protocol: Protocol = MAIN,
    seed: int = 0,
) -> MadeCohort:
    """The cohort at `size`^3 with K = `lesions`; at 32^3 the real heads hold 12 of each kind.

    Raises InvalidConfig where the heads do not hold so many at this size.
    """
    heads = base_heads() if heads is None else heads
    return assembled("spots", heads, protocol, seed, _maker(size, lesions))


def _maker(size: int, lesions: int) -> Maker:
    def of_head(head: Head) -> Callable[[np.random.Generator], Made]:
        scene = Deep(head, size)
        return lambda draw: _made(scene, lesions, draw)

    return of_head


def _made(scene: Deep, lesions: int, draw: np.random.Generator) -> Made:
    """One volume: `lesions` of each polarity and as many in each zone."""
    near = int(draw.integers(lesions + 1))
    signs = np.repeat([-1.0, 1.0], [near, lesions - near])
    heights = np.concatenate([signs, -signs]) * AMPLITUDE * draw.uniform(1 - JITTER, 1 + JITTER, 2 * lesions)
    places = scene.places(lesions, draw)
    volume = Spots(scene, places, heights.astype(np.float32), int(draw.integers(2**63)))
    return volume, near / lesions


def eroded(mask: Bool[Array, "Z Y X"]) -> Bool[Array, "Z Y X"]:
    """The voxels whose six neighbours are of the mask too; the volume's border is none of it."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for k in range(3):
        inner &= np.roll(padded, 1, k) & np.roll(padded, -1, k)
    return np.asarray(inner[1:-1, 1:-1, 1:-1])


def distance_to(
    mask: Bool[Array, "Z Y X"], spacing: tuple[float, float, float], limit: float
) -> Float32[Array, "Z Y X"]:
    """Millimetres from each voxel to the nearest of the mask; exact up to `limit`, not below it elsewhere.

    The square is the least over all steps along one axis after the other (Felzenszwalb and Huttenlocher,
    Distance transforms of sampled functions, Theory of Computing 2012, section 2).
    """
    square = np.where(mask, 0, np.float32(np.inf)).astype(np.float32)
    for k, step in enumerate(spacing):
        reach = int(limit / step)
        windows = np.pad(
            square, [(reach, reach) if j == k else (0, 0) for j in range(3)], constant_values=np.inf
        )
        for shift in range(2 * reach + 1):
            part = windows.take(np.arange(shift, shift + mask.shape[k]), axis=k)
            np.minimum(square, part + np.float32(((shift - reach) * step) ** 2), out=square)
    return np.sqrt(square)
