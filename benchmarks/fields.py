"""What the tensor-train benchmarks approximate: seeded fields, and ways to look at them that count.

A `Field` takes (z, y, x, feature) rows (m, 4), int64, and gives values (m,), float64. All methods, ours and
the peers, look at a field through one `Probe`, which counts what was really evaluated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.tt.qtt import Layout
from models.types import Array, Int64, Size

Values = NDArray[np.float64]
Field = Callable[[Int64], Values]
Family = Callable[[Int64, Int64], Values]
"""Rows (m, 4), and the number of the field that each is for, (m,), to values (m,)."""
Waves = tuple[Values, Values, Values]
"""Wave vectors (n, 3, 3) per voxel, phases (n, 3) and amplitudes (n, 3) of n sums of three waves."""

DATA = Path(os.environ.get("TOMOTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data"))
HEAD = "dev/nifti/stroke_T1.nii.gz"


def sigmoid_waves(
    size: int,
    features: int,
    *,
    bandwidth: float = 0.6,
    seed: int = 0,
    member: int | None = None,
    spread: float = 0.2,
) -> Field:
    """Per feature the sigmoid of a sum of three random plane waves over the unit cube.

    sum_j a_j sin(w_j . x + p_j) with amplitudes a ~ N(0, 1), wave vectors w ~ N(0, bandwidth^2 I), phases
    p ~ U(0, 2 pi); x = index / (size - 1). The members of a family have the same parameters, each moved by
    `spread` times a normal deviate (for w times the bandwidth too) that is the member's own.
    """
    waves = _waves(size, features, bandwidth, seed, member, spread)
    return lambda rows: _sigmoid(rows[:, :3], rows[:, 3], waves)


def sigmoid_family(
    size: int,
    features: int,
    members: Sequence[int],
    *,
    bandwidth: float = 0.6,
    seed: int = 0,
    spread: float = 0.2,
) -> Family:
    """Members of the family of `sigmoid_waves`, evaluated together."""
    each = [_waves(size, features, bandwidth, seed, member, spread) for member in members]
    vectors, phases, amplitudes = (np.concatenate(parts) for parts in zip(*each, strict=True))
    return lambda rows, owners: _sigmoid(
        rows[:, :3], owners * features + rows[:, 3], (vectors, phases, amplitudes)
    )


def _waves(size: int, features: int, bandwidth: float, seed: int, member: int | None, spread: float) -> Waves:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(features, 3, 3)) * bandwidth
    phases = generator.uniform(0, 2 * np.pi, (features, 3))
    amplitudes = generator.normal(size=(features, 3))
    if member is not None:
        own = np.random.default_rng((seed, member))
        vectors = vectors + spread * bandwidth * own.normal(size=vectors.shape)
        phases = phases + spread * own.normal(size=phases.shape)
        amplitudes = amplitudes + spread * own.normal(size=amplitudes.shape)
    return vectors / (size - 1), phases, amplitudes


def _sigmoid(at: Int64, row: Int64, waves: Waves) -> Values:
    """The sigmoid of the sum of the waves in `row` (m,) at voxels (m, 3)."""
    vectors, phases, amplitudes = waves
    points, total = at.astype(np.float64), np.zeros(len(at))
    for j in range(3):
        angle = np.einsum("md,md->m", points, vectors[row, j]) + phases[row, j]
        total += amplitudes[row, j] * np.sin(angle)
    return np.asarray(1 / (1 + np.exp(-total)))


def hilbert(size: int) -> Field:
    """1 / (0.1 + z + y + x) on the unit cube: smooth, with rapidly falling singular values."""
    return lambda rows: 1 / (0.1 + rows[:, :3].sum(axis=1) / (size - 1))


def blobs(size: int, sharpness: float = 1.0) -> Field:
    """Six rotated anisotropic Gaussians and a wave, on the unit cube."""
    generator = np.random.default_rng(3)
    centres = generator.uniform(0.2, 0.8, (6, 3))
    widths = sharpness * np.array([2.0, 3.0, 4.0])
    shapes = [np.linalg.qr(generator.normal(size=(3, 3)))[0] * widths for _ in centres]

    def value(rows: Int64) -> Values:
        at = rows[:, :3] / (size - 1)
        bumps = [np.exp(-np.square((at - c) @ w).sum(axis=1)) for c, w in zip(centres, shapes, strict=True)]
        return np.asarray(sum(bumps) + 0.1 * np.sin(4 * at.sum(axis=1)))

    return value


def of_volume(volume: NDArray[Any]) -> Field:
    """A dense volume (z, y, x) as a field of one feature."""
    return lambda rows: volume[rows[:, 0], rows[:, 1], rows[:, 2]].astype(np.float64)


def dense(field: Field, size: int) -> Values:
    """Every value of the first feature: (size, size, size), plane by plane."""
    plane = np.zeros((size * size, 4), np.int64)
    plane[:, 1:3] = np.indices((size, size)).reshape(2, -1).T
    volume = np.empty((size, size * size))
    for z in range(size):
        plane[:, 0] = z
        volume[z] = field(plane)
    return volume.reshape(size, size, size)


@cache
def head(size: int) -> Values:
    """A real T1 head (124 x 160 x 140, uint8) scaled to [0, 1] and zoomed linearly to size^3.

    Raises FileNotFoundError, naming the file, and ImportError where scipy is missing.
    """
    import nibabel
    from scipy.ndimage import zoom

    path = DATA / HEAD
    if not path.exists():
        raise FileNotFoundError(f"{HEAD} is not under TOMOTRAIN_DATA or ../shared/data")
    image = np.asarray(nibabel.load(path).dataobj, dtype=np.float64)  # type: ignore[attr-defined]
    image = (image - image.min()) / np.ptp(image)
    zoomed: Values = zoom(image, [size / n for n in image.shape], order=1)
    return zoomed


class SmoothVolume:
    """A smooth volume of size^3 as a source of boxes, computed where it is asked for."""

    channels = 1

    def __init__(self, size: int, phase: float = 0.0) -> None:
        self.shape = (size, size, size)
        self._phase = phase

    def cubes(self, origins: Int64, size: Size) -> Array:
        """sin(4 (z + y^2) + phase) + cos 5 (x - z) on the unit cube, and on beyond it."""
        box = (size,) * 3 if isinstance(size, int) else size
        axes = [(origins[:, k, None] + np.arange(side)) / (self.shape[k] - 1) for k, side in enumerate(box)]
        z, y, x = axes[0][:, :, None, None], axes[1][:, None, :, None], axes[2][:, None, None, :]
        return np.asarray((np.sin(4 * (z + y**2) + self._phase) + np.cos(5 * (x - z)))[:, None])


class Volume:
    """A volume (z, y, x) in memory as a source of boxes that reach up to `margin` voxels beyond it, zeros."""

    channels = 1

    def __init__(self, values: NDArray[Any], margin: int) -> None:
        self.shape = values.shape
        self._padded, self._margin = np.pad(values, margin), margin

    def cubes(self, origins: Int64, size: Size) -> Array:
        """Boxes with the lowest corners `origins` (n, 3)."""
        box = (size,) * 3 if isinstance(size, int) else size
        windows = np.lib.stride_tricks.sliding_window_view(self._padded, box)
        z, y, x = (origins + self._margin).T
        return np.asarray(windows[z, y, x][:, None])


class Probe:
    """A field over a layout that counts: `evaluated` entries with repetition, `unique` ones without.

    Counting is kept out of what is timed: a call only puts its rows on a list.
    """

    def __init__(self, field: Field, layout: Layout) -> None:
        self.layout = layout
        self._field, self._spatial = field, layout.spatial()
        self._strides = np.array(layout.strides, np.float64)
        self._seen: list[Int64] = []

    def keys(self, keys: Int64) -> Values:
        """The entries at keys (m,) of the layout."""
        return self._rows(self.layout.entries(keys))

    def indices(self, indices: NDArray[Any]) -> Values:
        """The entries at multi-indices (m, d) of any numeric type.

        One float64 product makes keys of them (exact below 2^53): the cheapest way that there is.
        """
        return self.keys((indices @ self._strides).astype(np.int64))

    def voxels(self, keys: Int64) -> Values:
        """All features (m, c) of the voxels at keys (m,) of the layout's spatial part."""
        features = self.layout.features
        rows = np.repeat(self._spatial.entries(keys), features, axis=0)
        rows[:, 3] = np.tile(np.arange(features), len(keys))
        return self._rows(rows).reshape(len(keys), features)

    @property
    def evaluated(self) -> int:
        """Entries that the field was evaluated at."""
        return sum(len(rows) for rows in self._seen)

    @property
    def unique(self) -> int:
        """Distinct ones among them."""
        return len(np.unique(self._linear()))

    @property
    def unique_voxels(self) -> int:
        """Distinct voxels among them: as many cubes an encoder would have to see."""
        return len(np.unique(self._linear() // self.layout.features))

    def _rows(self, rows: Int64) -> Values:
        self._seen.append(rows)
        return self._field(rows)

    def _linear(self) -> Int64:
        rows = np.concatenate([np.empty((0, 4), np.int64), *self._seen])
        return np.asarray(np.ravel_multi_index(tuple(rows.T), self.layout.shape), np.int64)


class Remembered:
    """What `look` gives at keys (m,), (m,) or (m, c), looked at once per key: how ours samples a probe.

    `requested` counts keys with repetition. Keys are kept sorted, as the product keeps voxels.
    """

    def __init__(self, look: Callable[[Int64], Values]) -> None:
        self._look = look
        self._keys = np.empty(0, np.int64)
        self._values: Values | None = None
        self.requested = 0

    def __call__(self, keys: Int64) -> Tensor:
        """The values at keys of any shape, in the same shape, with the features' axis at the end."""
        self.requested += keys.size
        flat = keys.ravel()
        if self._values is None:
            self._keys = np.unique(flat)
            self._values = self._look(self._keys)
        else:
            at = np.minimum(np.searchsorted(self._keys, flat), len(self._keys) - 1)
            missed = flat[self._keys[at] != flat]
            if len(missed) == 0:
                return torch.from_numpy(self._values[at].reshape(*keys.shape, *self._values.shape[1:]))
            self._learn(np.unique(missed), self._values)
        values = self._values[np.searchsorted(self._keys, flat)]
        return torch.from_numpy(values.reshape(*keys.shape, *values.shape[1:]))

    def _learn(self, keys: Int64, known: Values) -> None:
        """Look at new keys, ascending, and merge them in."""
        total = len(self._keys) + len(keys)
        at = np.searchsorted(self._keys, keys) + np.arange(len(keys))
        old = np.ones(total, bool)
        old[at] = False
        merged_keys, merged = np.empty(total, np.int64), np.empty((total, *known.shape[1:]))
        merged_keys[at], merged_keys[old] = keys, self._keys
        merged[at], merged[old] = self._look(keys), known
        self._keys, self._values = merged_keys, merged
