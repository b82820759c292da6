"""Chunks as blocks, for any Zarr v3 reader: the array-to-bytes codec `tomotrain.putt`.

Registered as an entry point: where Tomotrain is installed, `zarr.open` reads compressed arrays as any other,
chunk by chunk. Chunks are 3-D, or have leading axes of size 1. Write arrays with

    zarr.create_array(..., chunks=(32, 32, 32), shards=..., serializer=PuttCodec(step=4.0), compressors=None)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from storage.putt.block import block_bytes, block_values
from storage.putt.digits import Shape

NAME = "tomotrain.putt"
VERSION = 1


@dataclass(frozen=True)
class PuttCodec(ArrayBytesCodec):
    """Blocks for a step: the error's deviation is about 0.3 steps, or less.

    Raises ValueError for a step that is not above 0, and for another version of the format.
    """

    is_fixed_size = False

    step: float
    version: int = VERSION

    def __post_init__(self) -> None:
        if not (isinstance(self.step, int | float) and isfinite(self.step) and self.step > 0):
            raise ValueError(f"{NAME}: step = {self.step!r} must be above 0 and finite")
        if self.version != VERSION:
            raise ValueError(
                f"{NAME}: the array is of version {self.version} of the format, this Tomotrain reads "
                f"{VERSION}: use a newer one"
            )

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """What `to_dict` gave."""
        _, configuration = parse_named_configuration(data, NAME)
        return cls(**configuration)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JSON]:
        """As in an array's metadata."""
        return {"name": NAME, "configuration": {"step": self.step, "version": self.version}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """It depends on the values."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        data = await asyncio.to_thread(self._encoded, chunk_array.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype, shape = chunk_spec.dtype.to_native_dtype(), chunk_spec.shape
        values = await asyncio.to_thread(block_values, chunk_data.to_bytes(), _block_shape(shape), dtype)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values.reshape(shape))

    def _encoded(self, values: np.ndarray[Any, np.dtype[Any]]) -> bytes:
        return block_bytes(values.reshape(_block_shape(values.shape)), self.step)


def _block_shape(shape: tuple[int, ...]) -> Shape:
    """The last three axes; fewer are filled up. Raises ValueError where one before them is longer than 1."""
    if prod(shape[:-3]) != 1:
        raise ValueError(f"{NAME}: chunks of shape {shape}: only the last three sides may be above 1")
    z, y, x = (1, 1, 1, *shape)[-3:]
    return z, y, x
