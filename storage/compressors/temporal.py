"""Scans over time: the tensor core of the time axis first, then what is left of each frame as it is.

The Karhunen-Loeve transform of the frames x_t is the core that TT-SVD and Tucker's form have on that axis:

    G = X X^T = V diag(lambda) V^T,    X (T, voxels), eigenvalues falling;    c_k = sum_t V_tk x_t

V is orthonormal, so that an error of a component is one of the voxels and one setting serves all components.
Those whose mean square is below the noise of that setting, the mean squared error that it leaves frame by
frame, are left out. V is rounded to Q, integers of 16 bits, and components are fitted to Q, so that rounding
it costs nothing while all are kept. Components are whole numbers too, of as many bits as the compressor that
they are given to can take.

    x_t = (u / 2^15) sum_k Q_tk c_k

is then a sum of whole numbers below 2^53, which no order of float64 operations rounds: as a block's train, it
has the same bits on any machine. Both ways, with the core and frame by frame, are tried, and the one is kept
with the smaller D + (2 ln 2) d R, D the squared errors, R bits, d the mean squared error: the slope of a
uniform quantiser (Gish and Pierce, "Asymptotically efficient quantizing", IEEE Trans. Information Theory 14
(1968)), so that at equal errors the smaller file wins. Values that are not finite, one frame and very many
are kept frame by frame.

A payload is a byte, 2 n for frames by the n-th of `SPATIAL` and 2 n + 1 for components; then of these u,
float64, their number, a varint, and Q, int16; and what that compressor made of all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import ceil, log, log2
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import Framed, Setting, UnsuitableValues, as_dtype
from storage.compressors.factors import TtSvd
from storage.compressors.frame import Array, Dtype
from storage.compressors.putt import Putt
from storage.compressors.slices import BySlices, Jpeg2000, JpegXl
from storage.compressors.wavelet import Wavelet
from storage.compressors.zfp import Zfp
from storage.putt.varints import read_varint, varint

Float64 = NDArray[np.float64]

SPATIAL: tuple[Framed, ...] = (Putt(), TtSvd(), Zfp(), Jpeg2000(), JpegXl(), Wavelet())
"""Their places are part of the format."""
MOST_FRAMES = 1024
ROUNDED = 1 << 15
"""Of Q: an entry of 1."""
COMPONENT = np.dtype("<i4")
MOST = 1 << 24
"""Of a component's values: with 2^15 and 2^10 of them sums stay below 2^53."""
BITS, IMAGE_BITS = 23, 15
"""Of components, beside a sign."""
SMALLEST = 1e-14
"""Of eigenvalues over the largest: less is rounding."""
PORTION = 1 << 22
"""Values that are made float64 at a time."""
UNIT = struct.Struct("<d")


@dataclass(frozen=True)
class Core:
    """Q (T, K) and u, and the components (K, z, y, x)."""

    matrix: NDArray[np.int16]
    unit: float
    components: NDArray[np.int32]


@dataclass(frozen=True)
class Temporal(Framed):
    """The core before a compressor of volumes, one of `SPATIAL`."""

    name: ClassVar[str] = "temporal"

    spatial: Framed = field(default_factory=Wavelet)

    def setting(self, values: Array) -> Setting | None:
        """As of the compressor behind it: of the values' units, or else for images of 16 bits."""
        if not isinstance(self.spatial, BySlices):
            return self.spatial.setting(values)
        return self.spatial.setting(np.array([-ROUNDED, ROUNDED - 1], np.int16))

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`. Raises UnsuitableValues where nothing but components could be packed."""
        place = next(at for at, one in enumerate(SPATIAL) if one.name == self.spatial.name)
        if isinstance(self.spatial, BySlices):
            core = factored(values, 0.0, bits=IMAGE_BITS)
            if core is None:
                raise UnsuitableValues(
                    f"{self.spatial.name} over time takes 2 to {MOST_FRAMES:,} frames of finite values that "
                    "are not all 0"
                )
            return self._of_core(place, core, number)
        by_frame = bytes([2 * place]) + self.spatial.packed(values, number)
        squares = self._squared_error(values, by_frame)
        core = factored(values, squares / values.size, bits=BITS)
        if core is None:
            return by_frame
        by_core = self._of_core(place, core, number / core.unit)
        with_core = self._squared_error(values, by_core)
        slope = 8 * 2 * log(2) * (squares + with_core) / (2 * values.size)
        gained = squares - with_core + slope * (len(by_frame) - len(by_core))
        return by_core if gained > 0 else by_frame

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        place, with_core = divmod(payload[0], 2)
        if not with_core:
            return SPATIAL[place].unpacked(payload[1:], shape, dtype)
        (unit,) = UNIT.unpack_from(payload, 1)
        count, at = read_varint(payload, 1 + UNIT.size)
        stop = at + 2 * shape[0] * count
        matrix = np.frombuffer(payload[at:stop], "<i2").reshape(shape[0], count)
        components = SPATIAL[place].unpacked(payload[stop:], (count, *shape[1:]), COMPONENT)
        return joined(Core(matrix, unit, components), dtype)

    def _of_core(self, place: int, core: Core, number: float) -> bytes:
        head = UNIT.pack(core.unit) + varint(core.matrix.shape[1]) + core.matrix.astype("<i2").tobytes()
        return bytes([2 * place + 1]) + head + self.spatial.packed(core.components, number)

    def _squared_error(self, values: Array, payload: bytes) -> float:
        told = self.unpacked(payload, values.shape, values.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            return sum(
                float(np.square(own.astype(np.float64) - other.astype(np.float64)).sum())
                for own, other in zip(values, told, strict=True)
            )


def factored(values: Array, noise: float, *, bits: int) -> Core | None:
    """The core of frames (t, z, y, x), without components of a smaller mean square than `noise`; components
    of so many bits and a sign. None where there is none to be had.
    """
    if values.ndim != 4 or not 2 <= len(values) <= MOST_FRAMES:
        return None
    frames = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        energies, vectors = _eigen(frames)
    if not (noise >= 0 and energies[0] > 0) or not np.isfinite(energies).all():
        return None
    kept = int((energies > max(noise * frames.shape[1], SMALLEST * energies[0])).sum())
    matrix = np.clip(np.rint(vectors[:, : max(1, kept)] * ROUNDED), -ROUNDED, ROUNDED - 1)
    # c = (Q^T Q)^{-1} Q^T x, as Q is not quite orthonormal
    towards = np.linalg.solve(matrix.T @ matrix, matrix.T) * ROUNDED
    components = np.concatenate([towards @ part for part in _portions(frames)], axis=1)
    largest = float(np.abs(components).max())
    unit = 2.0 ** ceil(log2(largest / ((1 << bits) - 1)))
    whole = np.rint(components / unit).astype(COMPONENT)
    return Core(matrix.astype(np.int16), unit, whole.reshape(-1, *values.shape[1:]))


def joined(core: Core, dtype: Dtype) -> Array:
    """The frames (t, z, y, x)."""
    components = np.clip(core.components.reshape(len(core.components), -1), -MOST, MOST)
    told = np.empty((len(core.matrix), components.shape[1]), dtype)
    matrix, start = core.matrix.astype(np.float64), 0
    for part in _portions(components):
        stop = start + part.shape[1]
        told[:, start:stop] = as_dtype((matrix @ part) * (core.unit / ROUNDED), dtype)
        start = stop
    return told.reshape(-1, *core.components.shape[1:])


def _eigen(frames: Array) -> tuple[Float64, Float64]:
    """Of the Gram matrix, eigenvalues falling; NaN where it is not finite."""
    gram = np.zeros((len(frames), len(frames)))
    for part in _portions(frames):
        gram += part @ part.T
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan), gram
    energies, vectors = np.linalg.eigh(gram)
    return energies[::-1], vectors[:, ::-1]


def _portions(rows: Array) -> list[Float64]:
    """Some columns at a time, in float64."""
    width = max(1, PORTION // len(rows))
    return [rows[:, at : at + width].astype(np.float64) for at in range(0, rows.shape[1], width)]
