"""Zarr stores that the tests write themselves."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import tensorstore
import zarr
from whole_scans import ramp, read_whole

from storage.errors import InvalidScan, ScanTooLarge, UnsafeArchive, UnsupportedScan
from storage.readers import identify, open_scan
from storage.readers.base import Limits
from storage.readers.zarr_chunks import unpacked_size

SHAPE = (6, 5, 4)
MM = "millimeter"


def save_array(path: Path, data: np.ndarray, **options: Any) -> Path:
    array = zarr.create_array(
        str(path), shape=data.shape, dtype=data.dtype, **{"chunks": (3,) * data.ndim, **options}
    )
    array[...] = data
    return path


def save_image(
    path: Path,
    data: np.ndarray,
    names: str = "zyx",
    unit: str | None = MM,
    version: str = "0.5",
    **attributes: Any,
) -> Path:
    """An OME-Zarr image of one level, 3 x 2 x 1.5 along z, y and x, 0.5 s in time."""
    sizes = {"z": 3.0, "y": 2.0, "x": 1.5, "t": 0.5, "c": 1.0}
    kinds = {"t": "time", "c": "channel"}
    units = {"t": "second", "c": None}
    axes = [
        {
            "name": name,
            "type": kinds.get(name, "space"),
            **({"unit": u} if (u := units.get(name, unit)) else {}),
        }
        for name in names
    ]
    dataset = {
        "path": "0",
        "coordinateTransformations": [{"type": "scale", "scale": [sizes[n] for n in names]}],
    }
    multiscales = [{"version": version, "axes": axes, "datasets": [dataset]}]
    group = zarr.create_group(str(path), zarr_format=3 if version == "0.5" else 2)
    group.attrs.update(
        {"ome": {"version": version, "multiscales": multiscales}}
        if version == "0.5"
        else {"multiscales": multiscales}
    )
    group.attrs.update(attributes)
    array = group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=(3,) * data.ndim)
    array[...] = data
    return path


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def edit(path: Path, **changes: Any) -> Path:
    """Change the metadata of an array."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))
    return path.parent


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["bool", "u1", ">i2", "i4", "u8", "f2", "f4", ">f8"])
def test_every_type(tmp_path: Path, zarr_format: int, dtype: str) -> None:
    data = ramp(SHAPE, dtype)
    whole = read_whole(save_array(tmp_path / "a.zarr", data, zarr_format=zarr_format), depth=4)
    assert whole.header.dtype == np.dtype({"bool": "u1", "f2": "f4"}.get(dtype, dtype)).newbyteorder("=")
    np.testing.assert_array_equal(whole.voxels[0], data)
    assert whole.header.metadata["chunks_absent"] == 0


@pytest.mark.parametrize("prefix", ["", "scan.zarr/"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_in_a_folder_and_in_a_zip(tmp_path: Path, version: str, prefix: str) -> None:
    folder = save_image(tmp_path / "a.zarr", ramp(SHAPE), version=version)
    archive = zipped(folder, tmp_path / "upload", prefix)
    for path in (folder, archive):
        assert identify(path) == "zarr"
        whole = read_whole(path)
        np.testing.assert_array_equal(whole.voxels[0], ramp(SHAPE))
        assert whole.header.grid.spacing == (3.0, 2.0, 1.5)
        assert whole.header.grid.affine is None
        assert any("orientation unknown" in warning for warning in whole.warnings)


@pytest.mark.parametrize(("names", "shape", "axis", "step"), [
    ("xyz", SHAPE, None, None),
    ("tzyx", (2, *SHAPE), "t", 0.5),
    ("czyx", (2, *SHAPE), "c", None),
    ("tczyx", (1, 1, *SHAPE), None, None),
    ("tczyx", (2, 1, *SHAPE), "t", 0.5),
    ("tczyx", (1, 2, *SHAPE), "c", None),
    ("zyxc", (*SHAPE, 2), "c", None),
])  # fmt: skip
def test_axes_go_by_their_names(
    tmp_path: Path, names: str, shape: tuple[int, ...], axis: str | None, step: float | None
) -> None:
    data = ramp(shape)
    whole = read_whole(save_image(tmp_path / "a.zarr", data, names), depth=4)
    order = [names.index(name) for name in (*(n for n in names if n in "tc"), "z", "y", "x")]
    expected = data.transpose(order)
    np.testing.assert_array_equal(whole.voxels, expected.reshape(-1, *expected.shape[-3:]))
    frames = whole.header.frames
    assert (frames.axis if frames else None, frames.step_s if frames else None) == (axis, step)
    assert whole.header.grid.spacing == (3.0, 2.0, 1.5)


def test_five_real_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidScan, match="more than 4 dimensions"):
        open_scan(save_image(tmp_path / "a.zarr", ramp((2, 2, *SHAPE)), "tczyx"))


def test_a_scale_without_unit_is_no_size(tmp_path: Path) -> None:
    whole = read_whole(save_image(tmp_path / "a.zarr", ramp(SHAPE), unit=None))
    assert whole.header.grid.spacing is None
    assert "voxel size unknown" in whole.warnings[0]


def test_units_become_millimetres(tmp_path: Path) -> None:
    grid = read_whole(save_image(tmp_path / "a.zarr", ramp(SHAPE), unit="micrometer")).header.grid
    np.testing.assert_allclose(grid.spacing, (0.003, 0.002, 0.0015))


def test_a_volume_of_this_project_comes_back_with_its_affine(tmp_path: Path) -> None:
    affine = [[1.5, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]]
    for attributes in ({"affine_ras": affine}, {"tomotrain": {"grid": {"affine": affine}}}):
        path = save_image(tmp_path / f"{next(iter(attributes))}.zarr", ramp(SHAPE), **attributes)
        np.testing.assert_array_equal(read_whole(path).header.grid.matrix, affine)


def test_shards_are_read_and_their_chunks_checked(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.zarr", ramp(SHAPE), shards=(6, 6, 6))
    np.testing.assert_array_equal(read_whole(path).voxels[0], ramp(SHAPE))
    shard = path / "c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InvalidScan, match="corrupt chunk c/0/0/0"):
        read_whole(path)


def test_a_shard_whose_chunks_are_one_and_the_same_is_refused(tmp_path: Path) -> None:
    """A few bytes must not be decoded as often as an index likes."""
    data = np.random.default_rng(2).integers(0, 99, (32, 32, 32)).astype("i2")
    path = save_array(tmp_path / "a.zarr", data, chunks=(16, 16, 16), shards=(32, 32, 32))
    shard = path / "c/0/0/0"
    content = shard.read_bytes()
    offset, length = struct.unpack_from("<QQ", content, len(content) - 8 * 16 - 4)
    index = struct.pack("<QQ", 0, length) * 8
    chunk = content[offset : offset + length]
    shard.write_bytes(chunk + index + struct.pack("<L", google_crc32c.value(index)))
    np.testing.assert_array_equal(zarr.open_array(path)[:16, :16, 16:], data[:16, :16, :16])
    with pytest.raises(InvalidScan, match="names the same bytes several times"):
        read_whole(path)


def test_absent_chunks_are_counted_without_listing_them(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.zarr", ramp(SHAPE), fill_value=7)
    (path / "c/1/0/0").unlink()
    (path / "c/9/9").mkdir(parents=True)
    (path / "c/9/9/9").write_bytes(b"no chunk of this array")
    whole = read_whole(path)
    assert whole.header.metadata == {"zarr_format": 3, "ome_zarr": None, "chunks": 8, "chunks_absent": 1}
    assert "1 of 8 chunks absent (reads as fill value 7)" in whole.warnings
    assert (whole.voxels[0, 3:, :3, :3] == 7).all()


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"shape": [6, 5, -4]}, InvalidScan, "positive integers"),
    ({"shape": [6, 5, 4.0]}, InvalidScan, "positive integers"),
    ({"shape": [6, 5, True]}, InvalidScan, "positive integers"),
    ({"shape": [6, 5]}, InvalidScan, "of different lengths"),
    ({"shape": [1 << 20, 1 << 20, 1 << 20]}, ScanTooLarge, "declared size"),
    ({"data_type": "complex64"}, UnsupportedScan, "complex64"),
    ({"data_type": {"name": "numpy.datetime64"}}, UnsupportedScan, "not handled"),
    ({"data_type": "string"}, UnsupportedScan, "string"),
    ({"codecs": "none"}, InvalidScan, "bad Zarr metadata"),
    ({"codecs": [{"name": "bytes"}, {"name": "vlen-utf8"}]}, UnsupportedScan, "vlen-utf8"),
    ({"storage_transformers": [{"name": "x"}]}, UnsupportedScan, "transformers"),
    ({"chunk_grid": {"name": "rectangular"}}, UnsupportedScan, "rectangular"),
    ({"chunk_grid": None}, InvalidScan, "bad Zarr metadata"),
    ({"dimension_names": ["z", "y", "q"]}, InvalidScan, "axes z, y and x"),
])  # fmt: skip
def test_hostile_metadata(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = save_array(tmp_path / "a.zarr", ramp(SHAPE))
    with pytest.raises(error, match=message):
        open_scan(edit(path / "zarr.json", **changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"dtype": "|O"}, "not handled"),
    ({"dtype": [["a", "<i2"]]}, "not handled"),
    ({"filters": [{"id": "pickle"}]}, "pickle"),
    ({"compressor": {"id": "pickle"}}, "pickle"),
])  # fmt: skip
def test_hostile_metadata_of_version_2(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_array(tmp_path / "a.zarr", ramp(SHAPE), zarr_format=2)
    with pytest.raises(UnsupportedScan, match=message):
        open_scan(edit(path / ".zarray", **changes))


@pytest.mark.parametrize("escape", ["../other.zarr", "/etc", "a/../../b", "C:/x", "a\\b"])
def test_datasets_stay_inside_the_store(tmp_path: Path, escape: str) -> None:
    save_array(tmp_path / "other.zarr", ramp(SHAPE))
    path = save_image(tmp_path / "a.zarr", ramp(SHAPE))
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = escape
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(UnsafeArchive):
        open_scan(path)


def test_a_link_inside_a_folder_is_refused(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.zarr", ramp(SHAPE))
    (path / "c/0/0/0").unlink()
    (path / "c/0/0/0").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeArchive, match="symbolic link"):
        open_scan(path)


def test_a_chunk_deeper_than_memory_allows_is_read_in_parts(tmp_path: Path) -> None:
    data = ramp((8, 6, 6))
    path = save_array(tmp_path / "a.zarr", data, chunks=(8, 2, 2))
    limits = Limits(plane_bytes=8 * 2 * 2 * 2 + 80)
    np.testing.assert_array_equal(read_whole(path, limits, depth=3).voxels[0], data)
    with pytest.raises(ScanTooLarge, match="one chunk"):
        open_scan(path, Limits(plane_bytes=8 * 2 * 2 * 2 - 1))


BOMB = bytes(64 << 20)
PACKERS = {
    "zstd": (zarr.codecs.ZstdCodec(), numcodecs.Zstd()),
    "gzip": (zarr.codecs.GzipCodec(), numcodecs.GZip()),
    "blosc": (zarr.codecs.BloscCodec(), numcodecs.Blosc()),
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_chunk_that_unpacks_to_more_than_itself_is_never_unpacked(
    tmp_path: Path, name: str, sharded: bool
) -> None:
    codec, packer = PACKERS[name]
    data = np.random.default_rng(2).integers(0, 99, (32, 32, 32)).astype("i2")
    options = {"chunks": (16, 16, 16), "shards": (32, 32, 32)} if sharded else {"chunks": (32, 32, 32)}
    path = save_array(tmp_path / "a.zarr", data, compressors=codec, **options)
    np.testing.assert_array_equal(read_whole(path).voxels[0], data)
    chunk = path / "c/0/0/0"
    bomb = bytes(packer.encode(BOMB))
    if sharded:
        index = struct.pack("<16Q", 0, len(bomb), *[(1 << 64) - 1] * 14)
        bomb += index + struct.pack("<L", google_crc32c.value(index))
    chunk.write_bytes(bomb)
    with pytest.raises(ScanTooLarge, match="'c/0/0/0', unpacked"):
        read_whole(path)


def test_frames_of_zstd_are_summed_whether_they_name_their_size_or_not() -> None:
    frame = bytes(numcodecs.Zstd().encode(bytes(1 << 20)))
    assert unpacked_size(frame * 3, "zstd", 1 << 30) == 3 << 20
    unnamed = frame[:4] + bytes([frame[4] & 0x1F]) + b"\x50" + frame[9 if frame[4] >> 5 & 1 else 10 :]
    assert unpacked_size(unnamed, "zstd", 1 << 30) >= 1 << 20


def test_stores_of_other_writers_are_read(tmp_path: Path) -> None:
    data = np.random.default_rng(4).integers(0, 99, (64, 64, 64)).astype("i2")
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
    shard = {"chunk_shape": [16, 16, 16], "codecs": codecs}
    store = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / "a.zarr")},
            "metadata": {
                "shape": list(data.shape),
                "data_type": "int16",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 32, 32]}},
                "codecs": [{"name": "sharding_indexed", "configuration": shard}],
            },
        },
        create=True,
    ).result()
    store[...] = data
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr").voxels[0], data)
