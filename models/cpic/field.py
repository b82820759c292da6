"""The tensor that is approximated, E = f(cubes), looked at entry by entry; every cube is encoded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.encoder import Encoder
from models.errors import NonFiniteSample, SampleOutOfRange, SourceFailed
from models.tt.qtt import Layout
from models.types import Array, CubeSource, Int64

FETCH_BYTES = 64 << 20
"""Raw cubes asked of the source at once, as float64: it groups them by chunk."""
ENCODE_BATCH = 256
BATCH_MULTIPLE = 16
"""Batches are filled up to a multiple: convolution kernels round odd batch sizes differently."""


@dataclass(frozen=True)
class Counts:
    """What was looked at: `samples` with repetition, distinct entries of the layout, distinct cubes."""

    samples: int
    unique_samples: int
    unique_cubes: int


class EncodedVoxels:
    """Features of voxels, encoded when first asked for and kept, while the encoder stands still.

    Voxels are linear indices (z Y + y) X + x. Raises SourceFailed, NonFiniteSample, SampleOutOfRange.
    """

    def __init__(self, source: CubeSource, encoder: Encoder, device: torch.device) -> None:
        self._source, self._encoder, self._device = source, encoder, device
        self._voxels = np.empty(0, np.int64)  # ascending
        self._values: Tensor | None = None  # (len(_voxels), features), in the encoder's own precision

    def __len__(self) -> int:
        return len(self._voxels)

    def features(self, voxels: Int64) -> Float64[Tensor, "m f"]:
        """All features of voxels (m,)."""
        at = self._positions(voxels)
        return self._stored()[at].double()

    def entries(self, voxels: Int64, features: Int64) -> Float64[Tensor, " m"]:
        """One feature of each voxel (m,)."""
        at = self._positions(voxels)
        return self._stored()[at, torch.from_numpy(features).to(self._device)].double()

    def _positions(self, voxels: Int64) -> Tensor:
        """Where the voxels stand in the store, after encoding those that were never seen."""
        distinct = np.unique(voxels)
        self._encode(np.setdiff1d(distinct, self._voxels, assume_unique=True))
        return torch.from_numpy(np.searchsorted(self._voxels, voxels)).to(self._device)

    def _stored(self) -> Tensor:
        if self._values is None:
            return torch.empty(0, self._encoder.features, device=self._device)
        return self._values

    def _encode(self, voxels: Int64) -> None:
        """Encode voxels that are not in the store, and put them there."""
        if len(voxels) == 0:
            return
        cube_bytes = 8 * self._source.channels * self._encoder.cube_size**3
        pieces = np.split(voxels, range(step := max(1, FETCH_BYTES // cube_bytes), len(voxels), step))
        values = [self._encoded(piece) for piece in pieces]
        voxels = np.concatenate([self._voxels, voxels])
        order = np.argsort(voxels, kind="stable")
        stored = torch.cat(values if self._values is None else [self._values, *values])
        self._voxels = voxels[order]
        self._values = stored[torch.from_numpy(order).to(self._device)]

    def _encoded(self, voxels: Int64) -> Tensor:
        """Read the cubes around voxels, and encode them in batches of bounded size."""
        centres = np.stack(np.unravel_index(voxels, self._source.shape), axis=-1)
        cubes = self._read(centres)
        batches = [
            self._run(cubes[start : start + ENCODE_BATCH]) for start in range(0, len(cubes), ENCODE_BATCH)
        ]
        values = torch.cat(batches)
        low, high = self._encoder.value_range
        outside = ~((values >= low) & (values <= high))  # so that NaN is outside
        if bool(outside.any()):
            row, feature = divmod(int(outside.flatten().int().argmax()), values.shape[1])
            voxel, value = _plain(centres[row]), float(values[row, feature])
            if np.isfinite(value):
                raise SampleOutOfRange(voxel, value, low, high)
            raise NonFiniteSample(voxel, value)
        return values

    def _read(self, centres: Int64) -> Array:
        """Raw cubes (n, c, d, d, d) around centres (n, 3), finite and of the right shape."""
        size = self._encoder.cube_size
        origins = centres - size // 2
        what = (
            f"{len(centres)} cubes of {size}^3 around voxels {_plain(centres[0])} ... {_plain(centres[-1])}"
        )
        try:
            cubes = np.asarray(self._source.cubes(origins, size))
        except Exception as error:
            raise SourceFailed(f"reading {what}: {type(error).__name__}: {error}") from error
        expected = (len(centres), self._source.channels, size, size, size)
        if cubes.shape != expected:
            raise SourceFailed(f"reading {what}: shape {cubes.shape} came back, not {expected}")
        if cubes.dtype.kind not in "biuf":
            raise SourceFailed(f"reading {what}: values of type {cubes.dtype} came back, not real numbers")
        if cubes.dtype.kind == "f" and not (finite := np.isfinite(cubes)).all():
            n, c, *offset = np.unravel_index(int(np.argmin(finite)), cubes.shape)
            raise NonFiniteSample(_plain(origins[n] + np.array(offset)), float(cubes[(n, c, *offset)]))
        return cubes

    def _run(self, cubes: Array) -> Tensor:
        """Features of one batch, filled up with zeros that are cut off again."""
        count = len(cubes)
        batch = np.zeros((-(-count // BATCH_MULTIPLE) * BATCH_MULTIPLE, *cubes.shape[1:]))
        batch[:count] = cubes
        return self._encoder(torch.from_numpy(batch).to(self._device))[:count]


class SampledField:
    """E in a layout: keys in, entries out, counted."""

    def __init__(self, voxels: EncodedVoxels, layout: Layout) -> None:
        self._encoded, self._layout = voxels, layout
        self._keys = np.empty(0, np.int64)
        self._samples = 0

    def __call__(self, keys: Int64) -> Float64[Tensor, "..."]:
        """The entries at keys of any shape, in the same shape."""
        entries = self._layout.entries(keys.ravel())
        values = self._encoded.entries(linear_voxels(entries, self._layout), entries[:, 3])
        self._samples += keys.size
        self._keys = np.union1d(self._keys, keys)
        return values.reshape(keys.shape)

    @property
    def counts(self) -> Counts:
        """Of everything that was asked so far."""
        return Counts(self._samples, len(self._keys), len(self._encoded))


def linear_voxels(entries: Int64, layout: Layout) -> Int64:
    """Linear voxel indices of (z, y, x, ...) rows."""
    _, Y, X, _ = layout.shape
    return np.asarray((entries[:, 0] * Y + entries[:, 1]) * X + entries[:, 2], np.int64)


def _plain(index: Int64) -> tuple[int, ...]:
    return tuple(index.tolist())
