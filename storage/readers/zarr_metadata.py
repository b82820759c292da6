"""Zarr metadata of somebody else's store, judged before zarr-python opens it.

Everything is read as JSON and computed in Python integers: shapes and chunks against the limits, codecs and
data types against allow-lists, dataset paths against the store's own folder. What passes is an `ArrayPlan`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from storage.errors import InvalidScan, ScanTooLarge, UnsupportedScan
from storage.naming import check_inside
from storage.putt.zarr_codec import PuttCodec
from storage.readers.archives import Tree
from storage.readers.base import Limits
from storage.readers.zarr_chunks import Packing
from storage.readers.zarr_words import codec_name, known, numeric, version_of

MARKERS = ("zarr.json", ".zarray", ".zgroup")
METADATA_BYTES = 16 << 20
MAX_CHUNKS = 1 << 24
COMPRESSING = {"gzip", "zstd", "blosc"}
BLOCKS = PuttCodec.name
"""Our own codec: its blocks say what they take before they are decoded. Of `FRAMES` others decode some."""
FRAMES = "tomotrain.compressed"
MOST_BLOCK = 64
"""Voxels along a side of a block, as we write them: what a hostile one takes grows with its size."""
CODECS = {"bytes", "crc32c", "sharding_indexed", "transpose", BLOCKS} | COMPRESSING
INDEX_CODECS = ["bytes", "crc32c"]
COMPRESSORS = {"blosc", "gzip", "zlib", "zstd", "lz4"}
DTYPES_V3 = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
}  # fmt: skip
DTYPE_V2 = re.compile(r"[<>|](b1|[iu][1248]|f[248])")
MILLIMETRES = {
    "millimeter": 1.0, "meter": 1e3, "centimeter": 10.0, "decimeter": 100.0, "micrometer": 1e-3,
    "nanometer": 1e-6,
}  # fmt: skip
SECONDS = {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6, "minute": 60.0, "hour": 3600.0}
KIND = re.compile(r"[a-z][a-z_-]{0,39}")
FRAME_AXES = {"t": "t", "time": "t", "c": "c", "channel": "c"}


@dataclass(frozen=True)
class Axis:
    """One axis of an array: its name, and its unit where it has one."""

    name: str
    unit: str | None = None


@dataclass(frozen=True)
class ArrayPlan:
    """An array that may be opened: `path` inside the store, and what its metadata say.

    `chunks` is the grid of stored objects (shards where there are any). `scale` and `translation` belong to
    `axes`, both None where the store does not say. `affine` is a 4x4 from (x, y, z) to RAS+ mm in the store's
    attributes (`affine_ras`, or this project's own). `made_by` is the kind of the job that made the voxels,
    where this project's attributes name one.
    """

    path: str
    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    packing: Packing
    key: re.Pattern[str]
    fill_value: Any
    axes: tuple[Axis, ...]
    scale: tuple[float, ...] | None
    translation: tuple[float, ...] | None
    affine: Any
    ome_version: str | None
    made_by: str | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))


@dataclass(frozen=True)
class Layout:
    """How an array is cut into stored objects: their shape, voxel type, pattern of keys, packing."""

    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    key: str
    packing: Packing


def is_marker(name: str) -> bool:
    """Whether a file of this name says that its folder is a Zarr array or group."""
    return PurePosixPath(name).name in MARKERS


def plan_array(tree: Tree, limits: Limits) -> ArrayPlan:
    """The array at the root of a store, or the finest one of its OME-Zarr image.

    Raises InvalidScan, UnsupportedScan, ScanTooLarge or UnsafeArchive.
    """
    return _Store(tree, limits).plan()


class _Store:
    """The JSON documents of a store."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self._tree, self._limits = tree, limits
        self._members = {member.name: member for member in tree.members}
        markers = [PurePosixPath(name) for name in self._members if is_marker(name)]
        if not markers:
            raise UnsupportedScan("there is no Zarr array or group in this folder or archive")
        self._root = min(markers, key=lambda path: len(path.parts)).parent

    def plan(self) -> ArrayPlan:
        node, attributes = self._node(self._root)
        if node is not None:
            return self._array(self._root, node, attributes, {}, attributes)
        image = attributes.get("ome") if isinstance(attributes.get("ome"), dict) else attributes
        multiscales = image.get("multiscales") if isinstance(image, dict) else None
        if not isinstance(multiscales, list) or not multiscales:
            raise UnsupportedScan(
                "a Zarr group without OME-Zarr multiscales; send an OME-Zarr image or a single array"
            )
        try:
            multiscale = multiscales[0]
            dataset = multiscale["datasets"][0]
            path = str(dataset["path"])
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidScan(f"bad OME-Zarr metadata: multiscales without a dataset ({error!r})") from error
        check_inside(path)
        node, own = self._node(self._root / path)
        if node is None:
            raise InvalidScan("the first dataset of the OME-Zarr image is not an array of this store")
        version = multiscale.get("version") or (image or {}).get("version")
        return self._array(
            self._root / path, node, own, {**multiscale, "dataset": dataset, "version": version}, attributes
        )

    def _node(self, folder: PurePosixPath) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """(an array's metadata or None for a group, attributes) of a folder of the store."""
        document = self._json(folder / "zarr.json")
        if document is not None:
            attributes = document.get("attributes") or {}
            return (document if document.get("node_type") == "array" else None), _mapping(attributes)
        document = self._json(folder / ".zarray")
        return document, self._json(folder / ".zattrs") or {}

    def _json(self, path: PurePosixPath) -> dict[str, Any] | None:
        member = self._members.get(path.as_posix())
        if member is None:
            return None
        if member.size > METADATA_BYTES:
            raise ScanTooLarge(f"Zarr metadata {path.name!r}", member.size, METADATA_BYTES)
        try:
            return _mapping(json.loads(self._tree.read(member, METADATA_BYTES)))
        except (ValueError, RecursionError) as error:
            raise InvalidScan(f"the metadata in {path.name!r} are not JSON: {error}") from error

    def _array(
        self,
        folder: PurePosixPath,
        node: dict[str, Any],
        own: dict[str, Any],
        image: dict[str, Any],
        root: dict[str, Any],
    ) -> ArrayPlan:
        version = 3 if "node_type" in node else 2
        try:
            shape = _sizes(node["shape"], "shape")
            layout = (_layout_3 if version == 3 else _layout_2)(node)
            _check_extent(shape, layout, self._limits)
            axes, scale, translation = _axes(image, node, own, len(shape))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            lacking = f"{error} is missing" if isinstance(error, KeyError) else "a value does not fit"
            raise InvalidScan(f"bad Zarr metadata ({type(error).__name__}): {lacking}") from None
        prefix = "" if folder == PurePosixPath() else f"{folder.as_posix()}/"
        return ArrayPlan(
            path=prefix.rstrip("/"),
            zarr_format=version,
            shape=shape,
            chunks=layout.chunks,
            dtype=layout.dtype,
            packing=layout.packing,
            key=re.compile(re.escape(prefix) + layout.key),
            fill_value=node.get("fill_value"),
            axes=axes,
            scale=scale,
            translation=translation,
            affine=_affine(root) or _affine(own),
            ome_version=version_of(image.get("version")),
            made_by=_made_by(root),
        )


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidScan("bad Zarr metadata: a JSON object is needed")
    return value


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size > 0 for size in value):
        raise InvalidScan(f"bad Zarr metadata: {what} is {numeric(value)}; positive integers are needed")
    return tuple(value)


def _layout_3(node: dict[str, Any]) -> Layout:
    """What Zarr v3 metadata say of the chunks."""
    if not isinstance(node["data_type"], str) or node["data_type"] not in DTYPES_V3:
        raise UnsupportedScan(
            f"Zarr data type {known(node['data_type'])} is not handled; use integers, float32 or float64"
        )
    if node["chunk_grid"]["name"] != "regular":
        raise UnsupportedScan(f"Zarr chunk grid {known(node['chunk_grid']['name'])} is not handled")
    if node.get("storage_transformers"):
        raise UnsupportedScan("Zarr storage transformers are not handled")
    chunks = _sizes(node["chunk_grid"]["configuration"]["chunk_shape"], "chunk_shape")
    dtype = np.dtype(node["data_type"])
    encoding = node["chunk_key_encoding"]
    name = encoding["name"]
    if name not in ("default", "v2"):
        raise UnsupportedScan(f"Zarr chunk key encoding {known(name)} is not handled")
    separator = (encoding.get("configuration") or {}).get("separator", "/" if name == "default" else ".")
    prefix = f"c{re.escape(separator)}" if name == "default" else ""
    packing = _packing(node["codecs"], chunks, dtype.itemsize)
    return Layout(chunks, dtype, prefix + _coordinates(separator, len(chunks)), packing)


def _layout_2(node: dict[str, Any]) -> Layout:
    """What Zarr v2 metadata say of the chunks."""
    if not isinstance(node["dtype"], str) or not DTYPE_V2.fullmatch(node["dtype"]):
        raise UnsupportedScan(
            f"Zarr data type {known(node['dtype'])} is not handled; use integers, float32 or float64"
        )
    if node.get("filters"):
        raise UnsupportedScan(f"Zarr filters are not handled: {_names(node['filters'], 'id')}")
    compressor = node.get("compressor")
    if compressor is not None and compressor["id"] not in COMPRESSORS:
        raise UnsupportedScan(f"Zarr compressor {codec_name(compressor['id'])} is not handled")
    chunks, dtype = _sizes(node["chunks"], "chunks"), np.dtype(node["dtype"])
    packing = Packing(compressor and compressor["id"], math.prod(chunks) * dtype.itemsize)
    return Layout(chunks, dtype, _coordinates(node.get("dimension_separator", "."), len(chunks)), packing)


def _coordinates(separator: str, count: int) -> str:
    return re.escape(separator).join([r"(\d{1,18})"] * count)


def _names(entries: Iterable[Any], key: str) -> str:
    return ", ".join(codec_name(entry.get(key) if isinstance(entry, dict) else entry) for entry in entries)


def _packing(codecs: Sequence[dict[str, Any]], chunks: tuple[int, ...], itemsize: int) -> Packing:
    """How the chunks are stored, shards included. Raises UnsupportedScan for other codecs."""
    names = [codec["name"] for codec in codecs]
    if BLOCKS in names and (max(chunks) > MOST_BLOCK or math.prod(chunks[:-3]) > 1):
        raise UnsupportedScan(f"Zarr codec {BLOCKS!r} with chunks of {chunks}: at most {MOST_BLOCK} a side")
    for codec in codecs:
        if codec["name"] == BLOCKS:
            _check_version(codec["configuration"])
    for name in names:
        if name == FRAMES:
            raise UnsupportedScan(
                f"Zarr codec {FRAMES!r} is not handled in what is sent; send the scan as it was before, or "
                "have the service that holds it export it without its codecs"
            )
        if name not in CODECS:
            raise UnsupportedScan(
                f"Zarr codec {codec_name(name)} is not handled; use {', '.join(sorted(CODECS))}"
            )
    compressors = [name for name in names if name in COMPRESSING]
    if len(compressors) > 1 or ("sharding_indexed" in names and len(names) > 1):
        raise UnsupportedScan(f"Zarr codecs {', '.join(names)} are not handled together")
    if "sharding_indexed" not in names:
        return Packing(compressors[0] if compressors else None, math.prod(chunks) * itemsize)
    shard = codecs[0]["configuration"]
    if [codec["name"] for codec in shard["index_codecs"]] != INDEX_CODECS:
        raise UnsupportedScan(f"Zarr shards need an index coded by {' and '.join(INDEX_CODECS)}")
    inner = _sizes(shard["chunk_shape"], "chunk_shape of shards")
    if len(inner) != len(chunks) or any(outer % step for outer, step in zip(chunks, inner, strict=True)):
        raise InvalidScan(f"bad Zarr metadata: shards of {chunks} cannot hold whole chunks of {inner}")
    packing = _packing(shard["codecs"], inner, itemsize)
    if packing.inner is not None:
        raise UnsupportedScan("Zarr shards inside of shards are not handled")
    count = math.prod(outer // step for outer, step in zip(chunks, inner, strict=True))
    return replace(packing, inner=count, index_at_end=shard.get("index_location", "end") == "end")


def _check_version(configuration: dict[str, Any]) -> None:
    """Raises UnsupportedScan for blocks of another version than ours."""
    try:
        PuttCodec.readable(configuration.get("version"))
    except ValueError:
        told = (
            f"Zarr codec {BLOCKS!r}: version {numeric(configuration.get('version'))} of the format, of which"
        )
        raise UnsupportedScan(f"{told} this Tomotrain reads {PuttCodec.newest}: use a newer one") from None


def _check_extent(shape: tuple[int, ...], layout: Layout, limits: Limits) -> None:
    if len(shape) != len(layout.chunks):
        raise InvalidScan(f"bad Zarr metadata: {shape} and {layout.chunks} are of different lengths")
    declared = math.prod(shape) * layout.dtype.itemsize
    if declared > limits.decoded_bytes:
        raise ScanTooLarge("declared size of the Zarr array", declared, limits.decoded_bytes)
    if layout.packing.chunk_bytes > limits.plane_bytes:
        raise ScanTooLarge("one chunk of the Zarr array", layout.packing.chunk_bytes, limits.plane_bytes)
    count = math.prod(-(-size // step) for size, step in zip(shape, layout.chunks, strict=True))
    if count > MAX_CHUNKS:
        raise InvalidScan(f"{count} chunks are declared, at most {MAX_CHUNKS} are read; use larger chunks")


def _axes(
    image: dict[str, Any], node: dict[str, Any], own: dict[str, Any], count: int
) -> tuple[tuple[Axis, ...], tuple[float, ...] | None, tuple[float, ...] | None]:
    """(axes, scale, translation) by OME-Zarr, else names alone, else `..., z, y, x`."""
    if image:
        axes = tuple(_axis(entry) for entry in image.get("axes") or ["t", "c", "z", "y", "x"][-count:])
        if len(axes) != count:
            raise InvalidScan(f"bad OME-Zarr metadata: {len(axes)} axes for {count} dimensions")
        scale, translation = np.ones(count), np.zeros(count)
        steps = [image["dataset"].get("coordinateTransformations"), image.get("coordinateTransformations")]
        for step in itertools.chain.from_iterable(each or [] for each in steps):
            if step["type"] == "scale":
                factor = _numbers(step["scale"], count)
                scale, translation = scale * factor, translation * factor
            elif step["type"] == "translation":
                translation = translation + _numbers(step["translation"], count)
            elif step["type"] != "identity":
                raise UnsupportedScan(f"OME-Zarr transformation {known(step['type'])} is not handled")
        return axes, tuple(scale.tolist()), tuple(translation.tolist())
    names = node.get("dimension_names") or own.get("_ARRAY_DIMENSIONS") or [None] * count
    if len(names) != count:
        raise InvalidScan(f"bad Zarr metadata: {len(names)} dimension names for {count} dimensions")
    if None in names:
        names = ["t", "c", "z", "y", "x"][-count:] if count != 4 else ["c", "z", "y", "x"]
    return tuple(Axis(str(name).lower()) for name in names), None, None


def _axis(entry: Any) -> Axis:
    if isinstance(entry, str):
        return Axis(entry.lower())
    unit = entry.get("unit")
    return Axis(str(entry["name"]).lower(), None if unit is None else str(unit).lower())


def _numbers(value: Any, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    numbers = np.asarray(value, np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InvalidScan(f"bad OME-Zarr metadata: {numeric(value)} in a transformation of {count} axes")
    return numbers


def _affine(attributes: dict[str, Any]) -> Any:
    """A 4x4 affine to RAS+ mm among the attributes: `affine_ras`, or that of a volume of this project."""
    own = attributes.get("tomotrain")
    grid = own.get("grid") if isinstance(own, dict) else None
    if isinstance(grid, dict) and grid.get("affine"):
        return grid["affine"]
    return attributes.get("affine_ras")


def _made_by(attributes: dict[str, Any]) -> str | None:
    """The kind of the job that made a volume of this project of another one."""
    own = attributes.get("tomotrain")
    derived = own.get("derived") if isinstance(own, dict) else None
    kind = derived.get("kind") if isinstance(derived, dict) else None
    return kind if isinstance(kind, str) and KIND.fullmatch(kind) else None
