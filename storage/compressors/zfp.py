"""zfp with a bound (imagecodecs): Lindstrom, "Fixed-rate compressed floating-point arrays", IEEE Trans.
Visualization and Computer Graphics 20 (2014).

zfp rounds its bound down to a power of two. Values are divided by the bound first and given the bound 1, so
that files change evenly with it. A payload is the bound, float64, and zfp's stream.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np

from storage.compressors.base import Framed, Setting, as_dtype, finite, in_voxel_units, peer
from storage.compressors.frame import Array, Dtype

COARSEST = 64.0
"""Of ranges of the values: zfp's bound is far from reached."""
NUMBER = struct.Struct("<d")


class Zfp(Framed):
    """The array as a whole, 3-D or 4-D."""

    name: ClassVar[str] = "zfp"

    def setting(self, values: Array) -> Setting | None:
        """`tolerance`: no voxel's error is larger, but for rounding to the source's dtype."""
        return in_voxel_units("tolerance", values, COARSEST)

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        exact = np.result_type(values.dtype, np.float32)
        in_bounds = (finite(self.name, values).astype(np.float64) / number).astype(exact)
        return NUMBER.pack(number) + bytes(self._library().zfp_encode(in_bounds, 1, mode="a", header=True))

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        (number,) = NUMBER.unpack_from(payload)
        told = np.asarray(self._library().zfp_decode(payload[NUMBER.size :])).astype(np.float64)
        return as_dtype(told.reshape(shape) * number, dtype)

    def _library(self) -> Any:
        return peer(self.name, "imagecodecs")
