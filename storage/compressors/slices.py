"""Image codecs slice by slice (imagecodecs): JPEG 2000 (ISO/IEC 15444-1) and JPEG XL (ISO/IEC 18181).

They take images of unsigned integers. The least value is taken off, which nothing loses, and as many bits are
declared as the rest needs: 8 at least, as codecs round coarsely below, and 16 at most. A payload is the least
value, int64, the bits, a byte, and the slices.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from storage.compressors.base import Framed, Setting, UnsuitableValues, as_dtype, peer
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, together

FEWEST_BITS, MOST_BITS = 8, 16
HEAD = struct.Struct("<qB")


class BySlices(Framed):
    """Slices (y, x), each an image of its own."""

    @abstractmethod
    def image(self, values: Array, bits: int, number: float) -> bytes:
        """A slice of unsigned integers below 2^bits, as a file."""

    @abstractmethod
    def slice(self, data: bytes) -> Array:
        """What `image` was given, or near it."""

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        low, bits = self._range(values)
        unsigned = (values.astype(np.int64) - low).astype(np.uint8 if bits <= 8 else np.uint16)
        slices = unsigned.reshape(-1, *values.shape[-2:])
        return HEAD.pack(low, bits) + together([self.image(one, bits, number) for one in slices])

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        low, _ = HEAD.unpack_from(payload)
        values = np.empty((int(np.prod(shape[:-2])), *shape[-2:]), dtype)
        for number, image in enumerate(apart(payload[HEAD.size :])):
            values[number] = as_dtype(self.slice(image).astype(np.int64).reshape(shape[-2:]) + low, dtype)
        return values.reshape(shape)

    def _range(self, values: Array) -> tuple[int, int]:
        """The least value, and the bits that differences from it need. Raises UnsuitableValues."""
        if values.dtype.kind not in "iu":
            raise UnsuitableValues(
                f"{self.name} takes integers, not {values.dtype}: round to steps that matter first, or use "
                "putt or zfp"
            )
        low, high = int(values.min()), int(values.max())
        if (bits := max(FEWEST_BITS, (high - low).bit_length())) > MOST_BITS:
            raise UnsuitableValues(
                f"{self.name} takes values of {MOST_BITS} bits, these run from {low:,} to {high:,}, {bits} "
                "bits: use putt or zfp"
            )
        return low, bits

    def _library(self) -> Any:
        return peer(self.name, "imagecodecs")


class Jpeg2000(BySlices):
    """With the 9/7 wavelet. OpenJPEG misses the quality of slices of fewer than about 25 voxels."""

    name: ClassVar[str] = "jpeg2000"

    def setting(self, values: Array) -> Setting | None:
        """`quality`: the PSNR of each slice, dB, its peak the largest number of the declared bits."""
        _, bits = self._range(values)
        return Setting("quality", 6.0 * bits + 40, 5.0)

    def image(self, values: Array, bits: int, number: float) -> bytes:
        """See `BySlices`."""
        encode = self._library().jpeg2k_encode
        return bytes(
            encode(values, number, codecformat="j2k", bitspersample=bits, reversible=False, numthreads=1)
        )

    def slice(self, data: bytes) -> Array:
        """See `BySlices`."""
        return np.asarray(self._library().jpeg2k_decode(data, numthreads=1))


class Jpeg2000Lossless(Jpeg2000):
    """With the 5/3 wavelet."""

    name: ClassVar[str] = "jpeg2000_lossless"
    lossless = True

    def setting(self, values: Array) -> Setting | None:
        """None: it has no quality."""
        return None

    def image(self, values: Array, bits: int, number: float) -> bytes:
        """See `BySlices`."""
        encode = self._library().jpeg2k_encode
        return bytes(encode(values, 0, codecformat="j2k", bitspersample=bits, reversible=True, numthreads=1))


class JpegXl(BySlices):
    """Lossy, effort 7."""

    name: ClassVar[str] = "jpegxl"

    def setting(self, values: Array) -> Setting | None:
        """`distance`: Butteraugli's, as libjxl takes it."""
        self._range(values)
        return Setting("distance", 0.01, 25.0)

    def image(self, values: Array, bits: int, number: float) -> bytes:
        """See `BySlices`."""
        encode = self._library().jpegxl_encode
        return bytes(encode(values, distance=number, effort=7, bitspersample=bits, numthreads=1))

    def slice(self, data: bytes) -> Array:
        """See `BySlices`."""
        return np.asarray(self._library().jpegxl_decode(data, numthreads=1))


class JpegXlLossless(JpegXl):
    """Modular, effort 7."""

    name: ClassVar[str] = "jpegxl_lossless"
    lossless = True

    def setting(self, values: Array) -> Setting | None:
        """None: it has no quality."""
        return None

    def image(self, values: Array, bits: int, number: float) -> bytes:
        """See `BySlices`."""
        encode = self._library().jpegxl_encode
        return bytes(encode(values, lossless=True, effort=7, bitspersample=bits, numthreads=1))
