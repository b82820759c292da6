"""A stored scan: one OME-Zarr group, opened read-only; never loaded whole."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import zarr
from numpy.typing import NDArray

from storage.chunks import ChunkReader
from storage.cubes import CubeReader
from storage.errors import CorruptVolume, InvalidParameters, MissingKey, UnreadableVolume
from storage.gaps import NAME as GAPS
from storage.gaps import Gaps
from storage.layout import Level, plan_levels
from storage.manifest import NAME as MANIFEST
from storage.manifest import Manifest
from storage.records import StoredVolume

if TYPE_CHECKING:
    import dask.array as da

Array = NDArray[Any]
Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, Axis, Axis] = ("z", "y", "x")


class Volume:
    """Made by `Volume.open`. `stored` are its facts, `levels` its pyramid, `manifest` its objects."""

    def __init__(self, path: Path, manifest: Manifest, group: zarr.Group) -> None:
        self.path = path
        self.manifest = manifest
        self._group = group

    @classmethod
    def open(cls, path: Path, digest: str | None = None) -> Volume:
        """Open the volume whose root digest is `digest` (not compared when None).

        Raises CorruptVolume when the manifest is not the one with this digest, or the group's metadata
        are not those that the manifest names.
        """
        manifest = Manifest.read(path)
        if digest is not None and manifest.digest != digest:
            raise CorruptVolume(MANIFEST, f"its digest is {manifest.digest}, not {digest}")
        metadata = Manifest({key: o for key, o in manifest.objects.items() if key.endswith("zarr.json")})
        metadata.verify(path)
        return cls(path, manifest, zarr.open_group(path, mode="r", zarr_format=3))

    @cached_property
    def stored(self) -> StoredVolume:
        """The facts recorded at ingest."""
        facts: Any = self._group.attrs["tomotrain"]
        return StoredVolume.from_json(
            {**facts, "digest": self.manifest.digest, "stored_bytes": self.manifest.size}
        )

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first."""
        return plan_levels(self.stored.grid)

    def array(self, level: int = 0) -> zarr.Array[Any]:
        """One level as a Zarr array. Raises InvalidParameters for a level that is not there, and
        UnreadableVolume where its codecs are not.
        """
        if not 0 <= level < len(self.levels):
            raise InvalidParameters([("/level", f"levels go from 0 to {len(self.levels) - 1}, not {level}")])
        try:
            array = self._group[str(level)]
        except ValueError as error:
            raise UnreadableVolume(f"{level}/zarr.json", str(error)) from error
        assert isinstance(array, zarr.Array)
        return array

    def lazy(self, level: int = 0) -> da.Array:
        """One level as a lazy Dask array, one block a shard: for maps and reductions over everything."""
        import dask.array as da  # noqa: PLC0415 - a fifth of what starting the service would take

        array = self.array(level)
        lazy: da.Array = da.from_zarr(array, chunks=array.shards)
        return lazy

    def cube_reader(
        self, *, cache_bytes: int = 256 << 20, padding: float | None = None, scheduler: str = "threads"
    ) -> CubeReader:
        """Cubes of level 0. `padding` is by default the scan's smallest value: air, or background."""
        return CubeReader(
            self.array(0),
            cache_bytes=cache_bytes,
            padding=self.stored.statistics.minimum if padding is None else padding,
            scheduler=scheduler,
            seals=self.manifest.seals,
        )

    def gaps(self) -> Gaps | None:
        """Which voxels of level 0 were never measured; None where the store does not know of any."""
        if not self.stored.gaps:
            return None
        array = self._group[GAPS]
        assert isinstance(array, zarr.Array)
        return Gaps(array, self.manifest.seals)

    def plane(self, axis: Axis, index: int, *, level: int = 0, frame: int = 0) -> Array:
        """One plane (h, w) across an axis, rows and columns in the order z, y, x; reads its chunks only.

        Raises InvalidParameters for an index, level or frame that is not there.
        """
        array = self.array(level)
        across = AXES.index(axis)
        extent = array.shape[-3:]
        frames = array.shape[0] if array.ndim == 4 else 1
        for pointer, value, count in (("/index", index, extent[across]), ("/frame", frame, frames)):
            if not 0 <= value < count:
                raise InvalidParameters([(pointer, f"goes from 0 to {count - 1} here, not {value}")])
        start = [0, 0, 0]
        stop = list(extent)
        start[across], stop[across] = index, index + 1
        lead = ((), ()) if array.ndim == 3 else ((frame,), (frame + 1,))
        reader = ChunkReader(array, seals=self.manifest.seals)
        box = reader.box((*lead[0], *start), (*lead[1], *stop))
        return box.reshape([n for i, n in enumerate(extent) if i != across])

    def key_path(self, key: str) -> Path:
        """Where an object of the store lies. Raises MissingKey for all that the manifest does not name."""
        if key not in self.manifest.objects and key != MANIFEST:
            raise MissingKey(key)
        return self.path / PurePosixPath(key)

    def verify(self) -> None:
        """Read every object and compare it with the manifest. Raises CorruptVolume."""
        self.manifest.verify(self.path)
