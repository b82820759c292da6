"""A chunk without its trailing planes of fill: what Zarr pads a chunk with costs no bytes, and no train rings
at its edge.

Planes at the far end of an axis that hold the array's fill value and nothing else, bit for bit, are left out:
padding, and air where it is 0. The first byte says what follows:

    0  whole     the chunk's bytes
    1  fill      nothing: the chunk holds nothing else
    2  cut       its extent, three varints (z, y, x), and the bytes of that part
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.putt.digits import Shape
from storage.putt.varints import read_varint, varint

Array = NDArray[Any]
Dtype = np.dtype[Any]

WHOLE, FILL, CUT = 0, 1, 2


def trimmed(values: Array, fill: Any, pack: Callable[[Array], bytes]) -> bytes:
    """A chunk (z, y, x), what is left of it by `pack`."""
    extent = _extent(values, fill)
    if not all(extent):
        return bytes([FILL])
    if extent == values.shape:
        return bytes([WHOLE]) + pack(values)
    head = bytes([CUT]) + b"".join(map(varint, extent))
    return head + pack(np.ascontiguousarray(values[tuple(map(slice, extent))]))


def untrimmed(data: bytes, shape: Shape, dtype: Dtype, fill: Any, unpack: Callable[..., Array]) -> Array:
    """The chunk of `shape` that `trimmed` was given; `unpack` takes bytes, shape and dtype.

    Raises ValueError for an extent that cannot be, before anything is unpacked, and as `unpack`.
    """
    extent, rest = _announced(data, shape)
    if extent == shape:
        return unpack(rest, shape, dtype)
    values = np.full(shape, fill, dtype)
    if all(extent):
        values[tuple(map(slice, extent))] = unpack(rest, extent, dtype)
    return values


def _extent(values: Array, fill: Any) -> Shape:
    """How far along each axis there are other bits than those of the fill value; zeros if nowhere."""
    word = f"u{values.dtype.itemsize}"
    told = values.view(word) != np.array(fill, values.dtype).view(word)
    z, y, x = (_last(told.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return z, y, x


def _last(flags: NDArray[np.bool_]) -> int:
    return int(flags.nonzero()[0].max(initial=-1)) + 1


def _announced(data: bytes, shape: Shape) -> tuple[Shape, bytes]:
    """The extent of what is kept, and the bytes of that."""
    if data and data[0] == WHOLE:
        return shape, data[1:]
    if data == bytes([FILL]):
        return (0, 0, 0), b""
    if not data or data[0] != CUT:
        raise ValueError(
            f"no chunk of this version: {len(data)} bytes that begin with {data[:1].hex() or 'none'}"
        )
    (z, at) = read_varint(data, 1)
    (y, at) = read_varint(data, at)
    (x, at) = read_varint(data, at)
    if not all(1 <= side <= whole for side, whole in zip((z, y, x), shape, strict=True)):
        raise ValueError(
            f"an extent of {(z, y, x)} in a chunk of {shape}: each side is from 1 to the chunk's"
        )
    return (z, y, x), data[at:]
