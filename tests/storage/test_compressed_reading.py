"""Compressed arrays and volumes: our own path reads what zarr reads, and verifies it before it decodes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scans import ArrayScan
from threadpoolctl import threadpool_limits
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from storage import chunks
from storage.chunks import ChunkReader
from storage.compressors import MissingPeer, UnsuitableValues
from storage.compressors.zarr_codec import CHUNK_COMPRESSORS, FramedCodec
from storage.cubes import CubeReader
from storage.errors import CorruptVolume, UnreadableVolume
from storage.grid import VoxelGrid
from storage.ingest import ingest, seal
from storage.layout import Level, Tiling, create_group, writable
from storage.putt.zarr_codec import ChunkCodec, PuttCodec
from storage.records import StoredVolume
from storage.shards import CHECKSUMS, record_checksums
from storage.volume import Volume

Array = NDArray[Any]
SHAPE = (21, 40, 33)
CODECS: dict[str, ChunkCodec] = {
    "putt": PuttCodec(20.0),
    "zfp": FramedCodec("zfp", {"tolerance": 4.0}),
    "wavelet": FramedCodec("wavelet", {"step": 20.0}),
    "jpeg2000": FramedCodec("jpeg2000", {"quality": 60.0}),
    "tucker": FramedCodec("tucker", {"tolerance": 6.0}),
    "blosc": FramedCodec("blosc"),
    "bounded": FramedCodec("bounded", {"delta": 2}),
}


def scan(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> Array:
    """A soft-edged ball on a slope, a little noise, and air of 0 at the far end of x; from 0 to 2,400."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[-3:]), indexing="ij")
    values = 2000 / (1 + np.exp(12 * (z**2 + y**2 + x**2 - 0.6))) + 200 * (x + 1)
    values = values + np.random.default_rng(0).normal(0, 4, shape)
    values[..., -3:] = 0
    limit = 255 if dtype == "uint8" else 2400
    return np.clip(values.round() * (limit / 2400), 0, limit).astype(dtype)


def make(path: Path, voxels: Array, codec: ChunkCodec, *, fill: Any = 0) -> zarr.Array[Any]:
    """Tiles of 16^3 at most, each with a crc32c, in shards of up to (1, 2, 2) tiles."""
    ones = (1,) * (voxels.ndim - 3)
    tile = tuple(min(16, side) for side in voxels.shape[-3:])
    shard = tuple(
        side * min(most, -(-whole // side))
        for most, side, whole in zip((1, 2, 2), tile, voxels.shape[-3:], strict=True)
    )
    array = zarr.create_array(
        path,
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=(*ones, *shard),
        serializer=ShardingCodec(
            chunk_shape=(*ones, *tile),
            codecs=[codec, Crc32cCodec()],
            index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        ),
        compressors=None,
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    array[...] = voxels
    return array


def everything(array: zarr.Array[Any], seals: dict[str, int] | None = None) -> Array:
    return ChunkReader(array, seals=seals).box((0,) * array.ndim, array.shape)


@pytest.fixture
def by_our_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("zarr was asked")

    monkeypatch.setattr(chunks, "_fetch_by_zarr", refused)


# The same voxels


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("name", CODECS)
def test_the_bits_that_any_zarr_reader_has(tmp_path: Path, name: str) -> None:
    voxels = scan()
    written = make(tmp_path / "a", voxels, CODECS[name])
    seals = record_checksums(written, tmp_path / "a")
    array = zarr.open_array(tmp_path / "a", mode="r")
    told = everything(array, seals)
    assert told.dtype == voxels.dtype
    np.testing.assert_array_equal(told, array[...])
    assert np.abs(told.astype(float) - voxels).max() < 60
    assert np.array_equal(told, voxels) == (name == "blosc")


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["putt", "zfp"])
def test_dtypes_and_frames(tmp_path: Path, dtype: str, name: str) -> None:
    voxels = np.stack([scan((16, 18, 17), dtype), scan((16, 18, 17), dtype)[::-1]])
    array = make(tmp_path / "a", voxels, CODECS[name])
    told = everything(array)
    assert told.dtype == voxels.dtype
    np.testing.assert_array_equal(told, array[...])
    for frame in range(2):
        alone = make(tmp_path / str(frame), voxels[frame], CODECS[name])
        np.testing.assert_array_equal(told[frame], everything(alone))


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("name", ["putt", "blosc", "tucker"])
@pytest.mark.parametrize(
    "voxels",
    [
        pytest.param(np.full((20, 9, 3), -7, np.int16), id="constant"),
        pytest.param(np.zeros((20, 9, 3), np.float32), id="nothing but fill"),
        pytest.param(np.full((1, 1, 1), 300, np.uint16), id="one voxel"),
        pytest.param(np.full((1, 30, 1), 1.5), id="one row"),
    ],
)
def test_what_is_constant_comes_back_exactly(tmp_path: Path, voxels: Array, name: str) -> None:
    array = make(tmp_path / "a", voxels, CODECS[name])
    np.testing.assert_array_equal(everything(array), voxels)
    np.testing.assert_array_equal(array[...], voxels)


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_a_block_with_gaps_keeps_its_bits_and_others_are_trains(tmp_path: Path, fill: float) -> None:
    voxels = scan((16, 16, 40), "float32")
    voxels[3, 4, 5], voxels[9, 9, 9] = np.nan, np.inf
    array = make(tmp_path / "a", voxels, PuttCodec(20.0), fill=fill)
    told = everything(array)
    np.testing.assert_array_equal(told[..., :16], voxels[..., :16])
    assert not np.array_equal(told[..., 16:32], voxels[..., 16:32])
    np.testing.assert_array_equal(told, array[...])


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("name", ["putt", "zfp"])
def test_cubes_are_those_of_numpy_whatever_the_threads(tmp_path: Path, name: str) -> None:
    array = make(tmp_path / "a", scan(), CODECS[name])
    origins = np.random.default_rng(1).integers(-8, 45, (200, 3))
    padded = np.pad(array[...], 60, constant_values=-9)
    expected = np.stack([padded[z : z + 9, y : y + 9, x : x + 9] for z, y, x in origins + 60])
    for workers in (1, 4):
        with threadpool_limits(workers):
            reader = CubeReader(array, padding=-9, workers=workers)
            np.testing.assert_array_equal(reader.cubes(origins, 9)[:, 0], expected)
            reader.close()


def test_bytes_are_counted_as_they_are_fetched(tmp_path: Path) -> None:
    array = make(tmp_path / "a", scan(), CODECS["putt"])
    seals = record_checksums(array, tmp_path / "a")
    reader = ChunkReader(array, cache_bytes=1 << 20, seals=seals)
    reader.box((0, 0, 0), SHAPE)
    files = [path for path in (tmp_path / "a").rglob("*") if path.name not in ("zarr.json", "t")]
    on_disk = sum(path.stat().st_size for path in files if path.is_file())
    tiles = 2 * 3 * 3
    assert reader.counts.bytes == on_disk
    assert reader.counts.chunks == tiles
    assert reader.counts.decoded_bytes == tiles * 16**3 * 2
    reader.box((0, 0, 0), SHAPE)
    assert reader.counts.bytes == on_disk
    assert reader.counts.hits == tiles


# Damage


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("name", ["putt", "zfp"])
@pytest.mark.parametrize("under_seal", [True, False])
def test_every_altered_byte_is_found_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, under_seal: bool
) -> None:
    array = make(tmp_path / "a", scan((5, 4, 6)), CODECS[name])
    seals = record_checksums(array, tmp_path / "a") if under_seal else None
    everything(array, seals)
    monkeypatch.setattr(ChunkCodec, "chunk_values", pytest.fail)
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    sound = file.read_bytes()
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        with pytest.raises(CorruptVolume, match="c/0/0/0"):
            everything(array, seals)
    for length in range(0, len(sound), 7):
        file.write_bytes(sound[:length])
        with pytest.raises(CorruptVolume, match="c/0/0/0"):
            everything(array, seals)


def test_seals_find_chunks_and_checksums_that_changed_places(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**16, (16, 32, 32)).astype(np.uint16)
    array = make(tmp_path / "a", noise, FramedCodec("zstd"))
    seals = record_checksums(array, tmp_path / "a")
    file, sums = tmp_path / "a" / "c" / "0" / "0" / "0", tmp_path / "a" / CHECKSUMS
    sound, size = file.read_bytes(), len(file.read_bytes()) - 4 * 16 - 4
    assert size % 4 == 0
    file.write_bytes(sound[size // 4 : size // 2] + sound[: size // 4] + sound[size // 2 :])
    with pytest.raises(CorruptVolume, match=r"c/0/0/0.*chunk \(0, 0, 0\) is not the one"):
        everything(array, seals)
    file.write_bytes(sound)
    sums.write_bytes(sums.read_bytes()[::-1])
    with pytest.raises(CorruptVolume, match="manifest"):
        everything(array, seals)


def resealed(file: Path, change: Callable[[bytes], bytes]) -> None:
    """One chunk's bytes changed, with a crc32c that fits, in a shard of that chunk alone."""
    body = change(file.read_bytes()[: -16 - 4 - 4])
    chunk = body + int(google_crc32c.value(body)).to_bytes(4, "little")
    index = np.array([0, len(chunk)], "<u8").tobytes()
    file.write_bytes(chunk + index + int(google_crc32c.value(index)).to_bytes(4, "little"))


def frame_of(compressor: str, shape: tuple[int, ...], dtype: str) -> bytes:
    setting = {"tolerance": 1.0} if compressor in ("zfp", "tt_svd") else {}
    return CHUNK_COMPRESSORS[compressor].compress(np.ones(shape, dtype), **setting)


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("putt", lambda body: body[:9], r"c/0/0/0 chunk \(0, 0, 0\).*tomotrain.putt: values of 0 bytes"),
        ("putt", lambda body: b"\x02\x09\x01\x01", r"an extent of \(9, 1, 1\)"),
        ("blosc", lambda body: body[:-1], r"chunk \(0, 0, 0\).*tomotrain.compressed: the .* bytes have the"),
        ("blosc", lambda body: b"\0" + frame_of("zstd", (5, 4, 6), "int16"), "by zstd, not .* by blosc"),
        ("blosc", lambda body: b"\0" + frame_of("blosc", (5, 4, 7), "int16"), r"int16\(5, 4, 7\) by blosc"),
        ("blosc", lambda body: b"\0" + frame_of("blosc", (5, 4, 6), "int8"), "holds int8"),
    ],
)
def test_what_no_codec_wrote_is_a_corrupt_volume(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], said: str
) -> None:
    voxels = scan((5, 4, 6)) + np.int16(1)
    array = make(tmp_path / "a", voxels, CODECS[name])
    resealed(tmp_path / "a" / "c" / "0" / "0" / "0", change)
    with pytest.raises(CorruptVolume, match=said):
        everything(array)
    with pytest.raises(ValueError, match=said.rpartition("tomotrain.")[2].partition(": ")[2] or said):
        array[...]


# Codecs that cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gzip",), "there is no compressor 'gzip'; known are putt, .*bounded"),
        (("zfp",), "zfp is set by tolerance, got nothing"),
        (("zfp", {"step": 1.0}), "zfp is set by tolerance, got step"),
        (("blosc", {"level": 1}), "blosc is set by nothing, got level"),
        (("zfp", {"tolerance": float("nan")}), "tolerance = nan must be a number of at least 0"),
        (("zfp", {"tolerance": "4"}), "must be a number"),
        (("zfp", {"tolerance": 1.0}, 2), "version 2 of the format, this Tomotrain reads 1: use a newer one"),
    ],
)
def test_compressors_settings_and_versions_that_are_not_there(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FramedCodec(*arguments)


def test_values_that_a_compressor_cannot_take_are_refused_as_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableValues, match="jpeg2000 takes integers, not float32"):
        make(tmp_path / "a", scan(dtype="float32"), CODECS["jpeg2000"])


def test_a_library_that_is_missing_is_named_and_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = make(tmp_path / "a", scan((8, 8, 8)), CODECS["zfp"])
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    cure = r"zfp needs imagecodecs: pip install 'tomotrain\[peers\]'"
    with pytest.raises(UnreadableVolume, match=rf"c/0/0/0 chunk \(0, 0, 0\).*{cure}"):
        everything(array)
    with pytest.raises(MissingPeer, match=cure):
        array[...]


def test_a_newer_version_is_refused_with_the_cure(tmp_path: Path) -> None:
    make(tmp_path / "a", scan((8, 8, 8)), CODECS["blosc"])
    file = tmp_path / "a" / "zarr.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2 of the format, this Tomotrain reads 1: use a newer one"):
        zarr.open_array(tmp_path / "a", mode="r")


# Volumes


def tiling(level: Level) -> Tiling:
    """Tiles of 64^3, with sides no longer than the axes, in shards of 64 x 256 x 256 voxels at most."""
    z, y, x = (min(64, side) for side in level.shape)
    shards = [
        max(1, min(most, -(-length // side) * side) // side) * side
        for most, side, length in zip((64, 256, 256), (z, y, x), level.shape, strict=True)
    ]
    return Tiling((z, y, x), (shards[0], shards[1], shards[2]))


def compressed(source: Volume, path: Path, codec: ChunkCodec) -> Volume:
    """All levels of a volume coded by a codec, sealed."""
    facts = source.stored
    group = create_group(
        str(path), facts.grid, frames_of(source), np.dtype(facts.dtype), tiling=tiling, codecs=[codec]
    )
    for number in range(len(source.levels)):
        writable(group, number)[...] = source.array(number)[...]
    sealed: StoredVolume = seal(group, path, facts)
    return Volume.open(path, sealed.digest)


def frames_of(source: Volume) -> Any:
    return ArrayScan(np.zeros(source.stored.array_shape, np.uint8)).header.frames


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Volume, Volume]]:
    """By dimensions, a volume and the same one compressed: several shards, edges, three levels."""
    folder, pairs = tmp_path_factory.mktemp("volumes"), {}
    for name, shape in (("3d", (20, 70, 264)), ("4d", (2, 12, 20, 70))):
        ingest(ArrayScan(scan(shape), affine=np.diag([1.0, 1, 1, 1])), folder / name)
        source = Volume.open(folder / name)
        pairs[name] = source, compressed(source, folder / f"{name} compressed", PuttCodec(150.0))
    return pairs


@pytest.mark.usefixtures("by_our_own_path")
@pytest.mark.parametrize("dimensions", ["3d", "4d"])
def test_a_compressed_volume_is_used_as_any_other(
    volumes: dict[str, tuple[Volume, Volume]], dimensions: str
) -> None:
    source, volume = volumes[dimensions]
    assert volume.array(0).chunks[-3:] == tuple(min(64, side) for side in source.array(0).shape[-3:])
    assert volume.manifest.size < 0.3 * source.manifest.size
    last = 1 if dimensions == "4d" else 0
    for level in range(len(source.levels)):
        plain = source.array(level)[...]
        whole = volume.lazy(level).compute(scheduler="synchronous")
        assert whole.dtype == plain.dtype
        assert np.sqrt(np.square(whole - plain.astype(float)).mean()) < 0.4 * 150
        frame = whole if whole.ndim == 3 else whole[last]
        middle = [side // 2 for side in frame.shape]
        np.testing.assert_array_equal(volume.plane("z", middle[0], level=level, frame=last), frame[middle[0]])
        np.testing.assert_array_equal(
            volume.plane("x", frame.shape[2] - 1, level=level, frame=last), frame[:, :, -1]
        )
    reader = volume.cube_reader(padding=-3)
    finest = volume.array(0)[...].reshape(-1, *volume.array(0).shape[-3:])
    cubes = reader.cubes(np.array([[3, 10, 60], [-4, 1, 1]]), 9)
    np.testing.assert_array_equal(cubes[0], finest[:, 3:12, 10:19, 60:69])
    assert (cubes[1][:, :4] == -3).all()
    reader.close()


def test_a_volume_of_a_newer_version_says_so(
    volumes: dict[str, tuple[Volume, Volume]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PuttCodec, "newest", 0)
    volume = Volume.open(volumes["3d"][1].path)
    with pytest.raises(UnreadableVolume, match=r"0/zarr.json.*version 1 of the format.*use a newer one"):
        volume.plane("z", 0)


def test_a_shard_that_is_damaged_names_its_tile(
    volumes: dict[str, tuple[Volume, Volume]], tmp_path: Path
) -> None:
    source, _ = volumes["4d"]
    volume = compressed(source, tmp_path / "v", PuttCodec(150.0))
    file = tmp_path / "v" / "0" / "c" / "1" / "0" / "0" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[7] ^= 1
    file.write_bytes(damaged)
    volume.plane("z", 0, frame=0)
    with pytest.raises(CorruptVolume, match=r"0/c/1/0/0/0 chunk \(1, 0, 0, 0\).*crc32c"):
        volume.plane("z", 0, frame=1)


def test_one_voxel_as_a_volume(tmp_path: Path) -> None:
    ingest(ArrayScan(np.full((1, 1, 1), 12, np.uint8), affine=None), tmp_path / "a")
    volume = compressed(Volume.open(tmp_path / "a"), tmp_path / "b", PuttCodec(1.0))
    assert volume.stored.grid == VoxelGrid((1, 1, 1))
    assert volume.plane("z", 0).tolist() == [[12]]
