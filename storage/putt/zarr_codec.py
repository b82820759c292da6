"""Chunks as blocks, for any Zarr v3 reader: the array-to-bytes codec `tomotrain.putt`.

Registered as an entry point: where Tomotrain is installed, `zarr.open` reads compressed arrays as any other,
chunk by chunk. Chunks are 3-D, or have leading axes of size 1; planes of padding are left out
(`storage.putt.trimming`). Write arrays with

    zarr.create_array(..., chunks=(64, 64, 64), shards=..., serializer=PuttCodec(step=4.0),
                      compressors=Crc32cCodec())

Bytes that were altered need not be found by the codec itself: the checksum behind it does that.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from storage.putt.block import block_bytes, block_values
from storage.putt.digits import Shape
from storage.putt.trimming import trimmed, untrimmed

Array = NDArray[Any]
Dtype = np.dtype[Any]

VERSION = 1


class ChunkCodec(ArrayBytesCodec):
    """Chunks one by one, without what they are padded with. Subclasses are frozen dataclasses with a
    `version`, and say how a block (z, y, x) becomes bytes, which are complete in themselves.
    """

    is_fixed_size = False
    name: ClassVar[str]
    newest: ClassVar[int]

    @abstractmethod
    def packed(self, values: Array) -> bytes:
        """A block (z, y, x)."""

    @abstractmethod
    def unpacked(self, data: bytes, shape: Shape, dtype: Dtype) -> Array:
        """What `packed` was given, or near it. Raises ValueError for other bytes."""

    @abstractmethod
    def configuration(self) -> dict[str, JSON]:
        """Arguments by their names, without the version."""

    def chunk_bytes(self, values: Array, fill: Any) -> bytes:
        """A chunk of an array with this fill value. Raises ValueError where an axis before the last three is
        longer than 1, and for values that are no integers or floats.
        """
        self.suitable(values.dtype)
        return trimmed(values.reshape(self.block_shape(values.shape)), fill, self.packed)

    def chunk_values(self, data: bytes, shape: tuple[int, ...], dtype: Dtype, fill: Any) -> Array:
        """What `chunk_bytes` was given, of this shape and dtype. Raises ValueError for other bytes."""
        block = untrimmed(data, self.block_shape(shape), self.suitable(dtype), fill, self.unpacked)
        return block.reshape(shape)

    def suitable(self, dtype: Dtype) -> Dtype:
        """The dtype. Raises ValueError where it is neither of integers nor of floats."""
        if dtype.kind not in "iuf":
            raise ValueError(f"{self.name}: values of {dtype}: integers and floats can be compressed")
        return dtype

    def block_shape(self, shape: tuple[int, ...]) -> Shape:
        """The last three axes; fewer are filled up. Raises ValueError as `chunk_bytes`."""
        if prod(shape[:-3]) != 1:
            raise ValueError(
                f"{self.name}: chunks of shape {shape}: only the last three sides may be above 1"
            )
        z, y, x = (1, 1, 1, *shape)[-3:]
        return z, y, x

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """What `to_dict` gave. Raises ValueError for another version of the format."""
        _, configuration = parse_named_configuration(data, cls.name)
        cls.readable(configuration.get("version"))
        return cls(**configuration)

    def to_dict(self) -> dict[str, JSON]:
        """As in an array's metadata."""
        return {"name": self.name, "configuration": {**self.configuration(), "version": self.newest}}

    @classmethod
    def readable(cls, version: object) -> None:
        """Raises ValueError for another version of the format than ours."""
        if version != cls.newest:
            raise ValueError(
                f"{cls.name}: the array is of version {version} of the format, this Tomotrain reads "
                f"{cls.newest}: use a newer one"
            )

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """The codec. Raises ValueError for a dtype that cannot be compressed, before anything is written."""
        self.suitable(array_spec.dtype.to_native_dtype())
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """It depends on the values."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        values = chunk_array.as_numpy_array()
        data = await asyncio.to_thread(self.chunk_bytes, values, chunk_spec.fill_value)
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype, data = chunk_spec.dtype.to_native_dtype(), chunk_data.to_bytes()
        values = await asyncio.to_thread(
            self.chunk_values, data, chunk_spec.shape, dtype, chunk_spec.fill_value
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values)


@dataclass(frozen=True)
class PuttCodec(ChunkCodec):
    """Blocks for a step: the error's deviation is about a quarter of a step, or less.

    Raises ValueError for a step that is not above 0, and for another version of the format.
    """

    name: ClassVar[str] = "tomotrain.putt"
    newest: ClassVar[int] = VERSION

    step: float
    version: int = VERSION

    def __post_init__(self) -> None:
        self.readable(self.version)
        if not (isinstance(self.step, int | float) and isfinite(self.step) and self.step > 0):
            raise ValueError(f"{self.name}: step = {self.step!r} must be above 0 and finite")

    def configuration(self) -> dict[str, JSON]:
        """See `ChunkCodec`."""
        return {"step": self.step}

    def packed(self, values: Array) -> bytes:
        """See `ChunkCodec`."""
        return block_bytes(values, self.step)

    def unpacked(self, data: bytes, shape: Shape, dtype: Dtype) -> Array:
        """See `ChunkCodec`."""
        return block_values(data, shape, dtype)
