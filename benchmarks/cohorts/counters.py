"""Random numbers by place: the bits at a voxel depend on (seed, z, y, x) alone, whatever box asks for them.

A counter-based generator (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011): the mixing
function of SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014) over a
64-bit counter that is linear in the place.
"""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Float32, UInt64

from models.types import Array, Int64

Axes = tuple[Int64, Int64, Int64]
"""The places (n, Z), (n, Y), (n, X) along each axis that n boxes of one size cover."""

STEPS = tuple(np.uint64(step) for step in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xABC98388FB8FAC03))
BELL_MEAN, BELL_STD = 4 * 65535 / 2, (4 * (65536**2 - 1) / 12) ** 0.5


def generator(seed: int, *parts: str | int) -> np.random.Generator:
    """A generator of its own for whatever `parts` name."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return np.random.default_rng([seed, *numbers])


def bits(seed: int, axes: Axes) -> UInt64[Array, "n Z Y X"]:
    """64 random bits at each place."""
    z, y, x = (axis.astype(np.uint64) * step for axis, step in zip(axes, STEPS, strict=True))
    state: Array = (z + np.uint64(seed))[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    return state


def bells(seed: int, axes: Axes) -> Float32[Array, "n Z Y X"]:
    """Noise of mean 0 and deviation 1: the sum of four uniform 16-bit numbers, within +-3.47."""
    words = bits(seed, axes)
    even = np.uint64(0x0000FFFF0000FFFF)
    words = (words & even) + ((words >> np.uint64(16)) & even)
    total = (words & np.uint64(0xFFFFFFFF)) + (words >> np.uint64(32))
    return (total.astype(np.float32) - np.float32(BELL_MEAN)) * np.float32(1 / BELL_STD)


def below(limit: int, seed: int, axes: Axes) -> Int64:
    """Uniform integers in [0, limit), (n, Z, Y, X)."""
    return ((bits(seed, axes) >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)
