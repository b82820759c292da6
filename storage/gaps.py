"""Which voxels were never measured: a volume keeps their places beside the values that stand in for them.

Ingest replaces NaN and infinite voxels, so that no reader meets one. Where some were replaced, the array
`gaps` of the group, of the shape of level 0, is true there and false elsewhere. It has the chunks and shards
of an ingested level 0, the manifest names it, and its shards are sealed as all others (storage/shards.py).
A volume without gaps, or from before there was this array, has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from storage.chunks import ChunkReader
from storage.layout import PLAIN_CODECS, SAMPLING, writable
from storage.shards import shard_grid

Bools = NDArray[np.bool_]
NAME = "gaps"


class Gaps:
    """The gaps of one volume, read by boxes. Every chunk is verified, against `seals` if there are any."""

    def __init__(self, array: zarr.Array[Any], seals: Mapping[str, int] | None) -> None:
        self._reader = ChunkReader(array, seals=seals)

    def box(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Bools:
        """True where nothing was measured, of the voxels `start <= index < stop` of level 0, with its axes.

        Raises CorruptVolume.
        """
        return self._reader.box(start, stop)


def create_gaps(group: zarr.Group, axes: Sequence[str]) -> zarr.Array[Any]:
    """The array, for a group that has its level 0: all of it is written, and nothing marked yet."""
    finest = writable(group, 0)
    z, y, x = finest.shape[-3:]
    tiling, ones = SAMPLING.within((z, y, x)), (1,) * (finest.ndim - 3)
    array = group.create_array(
        NAME,
        shape=finest.shape,
        dtype=np.bool_,
        chunks=(*ones, *tiling.shard),
        serializer=ShardingCodec(
            chunk_shape=(*ones, *tiling.chunk),
            codecs=[*PLAIN_CODECS, Crc32cCodec()],
            index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
            index_location="end",
        ),
        compressors=None,
        filters=None,
        fill_value=False,
        dimension_names=axes,
    ).with_config({"write_empty_chunks": True})
    for shard in itertools.product(*map(range, shard_grid(array))):
        array.set_block_selection(shard, False)
    return array
