"""How a volume's arrays are laid out on disk, and the OME-Zarr metadata that says so.

Level 0 has inner chunks of 32^3: cross-approximation wants few bytes around each cube. The coarser
levels, which only people look at, have 64^3: a viewer's first picture costs three times fewer requests.
Shards keep the number of files small, and one row of level-0 shards is all that ingest holds in memory.
See docs/adr/0002-layout-on-disk.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale
from zarr.abc.codec import Codec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import MemoryStore

from storage.grid import Frames, VoxelGrid

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """Inner chunk and shard of a level, in voxels (z, y, x)."""

    chunk: Shape3
    shard: Shape3

    def within(self, shape: Shape3) -> Tiling:
        """The same for a level of `shape`: shards end with it, no chunk lies outside of it altogether."""
        chunk = np.array(self.chunk)
        whole = -(-np.array(shape) // chunk) * chunk
        return Tiling(self.chunk, _triple(np.minimum(self.shard, whole)))


SAMPLING = Tiling((32, 32, 32), (32, 512, 512))
VIEWING = Tiling((64, 64, 64), (64, 256, 256))
PLAIN_CODECS: tuple[Codec, ...] = (BytesCodec(endian="little"), ZstdCodec(level=1, checksum=True))
"""Of an inner chunk; a crc32c follows."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its size, and how many voxels of level 0 one of its voxels spans."""

    shape: Shape3
    factor: Shape3

    @property
    def tiling(self) -> Tiling:
        """Small chunks for the level that is sampled, large ones for those that are viewed."""
        return (SAMPLING if self.factor == (1, 1, 1) else VIEWING).within(self.shape)


def plan_levels(grid: VoxelGrid) -> tuple[Level, ...]:
    """The pyramid: halve the axes until one chunk holds the coarsest level.

    An axis is halved while its voxels are less than twice as long as the shortest, so that thick
    slices stay until the planes have caught up; an unknown spacing counts as equal on all axes.
    """
    levels = [Level(grid.shape, (1, 1, 1))]
    base = np.array(grid.spacing or (1.0, 1.0, 1.0))
    while max(levels[-1].shape) > max(VIEWING.chunk):
        size, factor = np.array(levels[-1].shape), np.array(levels[-1].factor)
        spacing = base * factor
        large = size > 1
        step = np.where(large & (spacing < 2 * spacing[large].min()), 2, 1)
        levels.append(Level(_triple(-(-size // step)), _triple(factor * step)))
    return tuple(levels)


def create_group(
    store: str | MemoryStore,
    grid: VoxelGrid,
    frames: Frames | None,
    dtype: np.dtype[Any],
    *,
    tiling: Callable[[Level], Tiling] = lambda level: level.tiling,
    codecs: Sequence[Codec] = PLAIN_CODECS,
) -> zarr.Group:
    """An empty OME-Zarr 0.5 group with all its levels, `0` the finest. `codecs` are those of inner chunks."""
    levels = plan_levels(grid)
    axes = axis_names(frames)
    group = zarr.create_group(store, zarr_format=3)
    group.attrs["ome"] = ome_attributes(grid, frames, levels)
    for number, level in enumerate(levels):
        lead = () if frames is None else (frames.count,)
        ones, tiles = (1,) * len(lead), tiling(level)
        group.create_array(
            str(number),
            shape=(*lead, *level.shape),
            dtype=dtype,
            chunks=(*ones, *tiles.shard),
            serializer=ShardingCodec(
                chunk_shape=(*ones, *tiles.chunk),
                codecs=[*codecs, Crc32cCodec()],
                index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
                index_location="end",
            ),
            compressors=None,
            filters=None,
            fill_value=0,
            dimension_names=axes,
        )
    return group


def writable(group: zarr.Group, number: int | str) -> zarr.Array[Any]:
    """An array, a level's mostly, set to store empty chunks too: in our volumes an absent one is damaged."""
    array = group[str(number)]
    assert isinstance(array, zarr.Array)
    return array.with_config({"write_empty_chunks": True})


def axis_names(frames: Frames | None) -> tuple[str, ...]:
    """`(z, y, x)`, with a leading `t` or `c` where there are frames."""
    return ("z", "y", "x") if frames is None else (frames.axis, "z", "y", "x")


def ome_attributes(grid: VoxelGrid, frames: Frames | None, levels: tuple[Level, ...]) -> dict[str, Any]:
    """The `ome` attribute (OME-Zarr 0.5). Spacing in millimetres; no unit where it is unknown."""
    unit = {"unit": "millimeter"} if grid.spacing else {}
    axes = [Axis(name=name, type="space", **unit) for name in "zyx"]
    lead: list[float] = []
    if frames is not None and frames.axis == "t":
        lead = [frames.step_s or 1.0]
        axes.insert(0, Axis(name="t", type="time", **({"unit": "second"} if frames.step_s else {})))
    elif frames is not None:
        lead = [1.0]
        axes.insert(0, Axis(name="c", type="channel"))
    base = np.array(grid.spacing or (1.0, 1.0, 1.0))
    datasets = tuple(
        Dataset.build(
            path=str(number),
            scale=[*lead, *(base * level.factor).tolist()],
            translation=[*(0.0 for _ in lead), *(base * (np.array(level.factor) - 1) / 2).tolist()],
        )
        for number, level in enumerate(levels)
    )
    image = ImageAttrs(version="0.5", multiscales=[Multiscale(axes=axes, datasets=datasets, name="scan")])
    return image.model_dump(mode="json", exclude_none=True)


def _triple(values: np.ndarray[Any, Any]) -> Shape3:
    z, y, x = (int(value) for value in values)
    return z, y, x
