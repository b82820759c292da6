"""CubeReader: the same voxels as numpy, each chunk once, bounded, and never a damaged one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.chunks import ByteLRU, ChunkReader
from storage.cubes import CubeReader, ReadPlan, Size, sides
from storage.errors import CorruptVolume
from storage.shards import CHECKSUMS, record_checksums

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chunks": (16, 16, 16)},
    "plain, uneven": {"chunks": (7, 20, 13)},
    "crc32c": {
        "chunks": (16, 16, 16),
        "compressors": [zarr.codecs.ZstdCodec(checksum=True), zarr.codecs.Crc32cCodec()],
    },
    "sharded": {
        "chunks": (8, 8, 8),
        "shards": (16, 32, 32),
        "compressors": [zarr.codecs.ZstdCodec(checksum=True), zarr.codecs.Crc32cCodec()],
    },
    "gzip, by zarr itself": {"chunks": (16, 16, 16), "compressors": [zarr.codecs.GzipCodec()]},
    "uncompressed": {"chunks": (16, 16, 16), "compressors": None},
}
SHAPE = (37, 50, 41)


def make(path: Path, layout: str, voxels: NDArray[Any]) -> zarr.Array[Any]:
    options = dict(LAYOUTS[layout])
    if voxels.ndim == 4:
        options = {k: (1, *v) if k in ("chunks", "shards") else v for k, v in options.items()}
    array = zarr.create_array(
        path, shape=voxels.shape, dtype=voxels.dtype, config={"write_empty_chunks": True}, **options
    )
    array[...] = voxels
    return array


def expected(voxels: NDArray[Any], origins: NDArray[np.int64], size: Size, padding: float) -> NDArray[Any]:
    """The definition: cut from an array padded by far more than any origin leaves it."""
    volume = voxels if voxels.ndim == 4 else voxels[None]
    far = 90
    padded = np.pad(volume, ((0, 0), *((far, far),) * 3), constant_values=padding)
    Z, Y, X = sides(size)
    return np.stack([padded[:, z : z + Z, y : y + Y, x : x + X] for z, y, x in origins + far])


@pytest.fixture
def voxels() -> NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 9, 24, (1, 9, 30), (72, 9, 9), (9, 24, 1)])
def test_equals_numpy_inside_across_and_outside(
    tmp_path: Path, voxels: NDArray[Any], layout: str, size: Size
) -> None:
    array = make(tmp_path / "a", layout, voxels)
    origins = np.random.default_rng(1).integers(-30, 55, (300, 3))
    reader = CubeReader(array, padding=-1024)
    np.testing.assert_array_equal(reader.cubes(origins, size), expected(voxels, origins, size, -1024))
    assert reader.counts.cubes == 300
    reader.close()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", "int64"])
def test_channels_and_dtypes(tmp_path: Path, dtype: str) -> None:
    voxels = np.random.default_rng(2).integers(0, 200, (5, *SHAPE)).astype(dtype)
    reader = CubeReader(make(tmp_path / "a", "sharded", voxels))
    origins = np.array([[0, 0, 0], [30, 44, 38], [-4, 10, 10]])
    cubes = reader.cubes(origins, 9)
    assert reader.channels == 5
    assert reader.shape == SHAPE
    assert cubes.dtype == voxels.dtype
    np.testing.assert_array_equal(cubes, expected(voxels, origins, 9, 0))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    chunk=st.tuples(*[st.integers(1, 20)] * 3),
    size=st.integers(1, 25) | st.tuples(*[st.integers(1, 25)] * 3),
    seed=st.integers(0, 1000),
)
def test_plan_covers_each_voxel_of_each_box_once(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], size: Size, seed: int
) -> None:
    origins = np.random.default_rng(seed).integers(-max(sides(size)) - 3, 45, (20, 3))
    plan = ReadPlan.of(origins, size, shape, chunk)
    hits = np.zeros((20, *sides(size)), int)
    for i, index in enumerate(plan.chunks):
        for cube, target, source in plan.pieces(i):
            hits[(cube, *target)] += 1
            low = [int(o) + t.start for o, t in zip(origins[cube], target, strict=True)]
            assert low == [int(k) * c + s.start for k, c, s in zip(index, chunk, source, strict=True)]
    inside = expected(np.ones(shape, int), origins, size, 0)[:, 0]
    np.testing.assert_array_equal(hits, inside)
    assert len(np.unique(plan.chunks, axis=0)) == len(plan.chunks)


def test_each_chunk_is_decoded_once_a_call_and_served_from_the_cache_after(
    tmp_path: Path, voxels: NDArray[Any]
) -> None:
    reader = CubeReader(make(tmp_path / "a", "crc32c", voxels))
    origins = np.random.default_rng(3).integers(0, 30, (500, 3))
    reader.cubes(origins, 9)
    chunks = reader.counts.chunks
    assert chunks == len(ReadPlan.of(origins, 9, SHAPE, (16, 16, 16)).chunks)
    reader.cubes(origins, 9)
    assert reader.counts.chunks == chunks
    assert reader.counts.hits == chunks
    assert reader.counts.decoded_bytes == chunks * 16**3 * 2


def test_the_cache_keeps_within_its_bytes() -> None:
    cache = ByteLRU(100)
    for key in range(50):
        cache.put(key, np.zeros(30, np.uint8))
        cache.get(0)
        assert cache.nbytes <= 100
    assert 0 in cache
    cache.put("too large", np.zeros(101, np.uint8))
    assert "too large" not in cache
    cache.put(0, np.zeros(90, np.uint8))
    assert cache.nbytes == 90


def test_a_small_cache_still_serves_what_it_holds_first(tmp_path: Path, voxels: NDArray[Any]) -> None:
    reader = CubeReader(make(tmp_path / "a", "crc32c", voxels), cache_bytes=10 * 16**3 * 2)
    origins = np.random.default_rng(3).integers(0, 30, (200, 3))
    reader.cubes(origins, 9)
    reader.cubes(origins, 9)
    assert reader.counts.hits >= 8


@pytest.mark.parametrize("layout", ["crc32c", "sharded"])
def test_every_flipped_bit_is_found(tmp_path: Path, voxels: NDArray[Any], layout: str) -> None:
    make(tmp_path / "a", layout, voxels)
    files = sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != "zarr.json")
    rng = np.random.default_rng(4)
    whole = np.stack(np.meshgrid(*[range(0, n, 8) for n in SHAPE], indexing="ij"), -1).reshape(-1, 3)
    for _ in range(40):
        path = files[rng.integers(len(files))]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[rng.integers(len(sound))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CorruptVolume):
            CubeReader(zarr.open_array(tmp_path / "a", mode="r")).cubes(whole, 8)
        path.write_bytes(sound)
    CubeReader(zarr.open_array(tmp_path / "a", mode="r")).cubes(whole, 8)


EVERYWHERE = ((0, 0, 0), SHAPE)


def sealed(path: Path, voxels: NDArray[Any]) -> tuple[zarr.Array[Any], dict[str, int], list[Path]]:
    """A sharded array whose chunks' checksums are recorded, the seals of its shards, and their files."""
    array = make(path, "sharded", voxels)
    return array, record_checksums(array, path), sorted(p for p in (path / "c").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(np.random.default_rng(0).integers(-999, 999, SHAPE).astype(np.int16), id="scan"),
        pytest.param(np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8), id="pure noise"),
        pytest.param(np.broadcast_to(np.arange(37) // 16, SHAPE[::-1]).T.astype(np.uint8), id="labels"),
    ],
)
def test_under_a_seal_missing_and_exchanged_shards_are_found(tmp_path: Path, content: NDArray[Any]) -> None:
    """Also where all chunks compress to the same size, so that the shards' indexes are equal."""
    array, seals, files = sealed(tmp_path / "a", content)
    np.testing.assert_array_equal(ChunkReader(array, seals=seals).box(*EVERYWHERE), content)
    first, last = files[0].read_bytes(), files[-4].read_bytes()
    files[0].write_bytes(last)
    files[-4].write_bytes(first)
    with pytest.raises(CorruptVolume, match="manifest"):
        ChunkReader(array, seals=seals).box(*EVERYWHERE)
    files[0].unlink()
    with pytest.raises(CorruptVolume, match="missing"):
        ChunkReader(array, seals=seals).box(*EVERYWHERE)


def test_under_a_seal_exchanged_chunks_are_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    array, seals, files = sealed(tmp_path / "a", noise)
    shard = bytearray(files[0].read_bytes())
    index = np.frombuffer(shard[-(16 * 32 + 4) : -4], "<u8").reshape(32, 2)
    (size,) = set(index[:, 1].tolist())
    shard[: 2 * size] = shard[size : 2 * size] + shard[:size]
    files[0].write_bytes(shard)
    with pytest.raises(CorruptVolume, match="not the one that the manifest names"):
        ChunkReader(array, seals=seals).box(*EVERYWHERE)


def test_lost_or_altered_checksums_are_found(tmp_path: Path, voxels: NDArray[Any]) -> None:
    array, seals, _ = sealed(tmp_path / "a", voxels)
    recorded = tmp_path / "a" / CHECKSUMS
    sound = recorded.read_bytes()
    for content in (b"", sound[:-1], bytes([sound[0] ^ 1]) + sound[1:]):
        recorded.write_bytes(content)
        with pytest.raises(CorruptVolume):
            ChunkReader(array, seals=seals).box(*EVERYWHERE)
    recorded.unlink()
    with pytest.raises(CorruptVolume, match=CHECKSUMS):
        ChunkReader(array, seals=seals).box(*EVERYWHERE)


def test_absent_chunks_read_as_the_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=SHAPE, dtype="int16", fill_value=7, **LAYOUTS["sharded"])
    np.testing.assert_array_equal(
        CubeReader(array).cubes(np.array([[3, 3, 3]]), 5), np.full((1, 1, 5, 5, 5), 7)
    )


def _read_in_child(path: Path, queue: Any) -> None:
    reader = CubeReader(zarr.open_array(path, mode="r"), workers=2)
    queue.put(int(reader.cubes(np.argwhere(np.ones((20, 20, 20)))[::3], 9).sum(dtype=np.int64)))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_works_in_a_forked_child_after_use_in_the_parent(tmp_path: Path, voxels: NDArray[Any]) -> None:
    make(tmp_path / "a", "sharded", voxels)
    context = multiprocessing.get_context("fork")
    here, there = context.Queue(), context.Queue()
    _read_in_child(tmp_path / "a", here)
    child = context.Process(target=_read_in_child, args=(tmp_path / "a", there))
    child.start()
    assert there.get(timeout=30) == here.get(timeout=30)
    child.join(10)
    assert child.exitcode == 0


def test_a_dask_cluster_reads_and_checks_the_same(tmp_path: Path, voxels: NDArray[Any]) -> None:
    distributed = pytest.importorskip("distributed")
    array, seals, files = sealed(tmp_path / "a", voxels)
    origins = np.random.default_rng(5).integers(-5, 45, (50, 3))
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        dashboard_address=None,
        host="127.0.0.1",
        protocol="tcp",
    ) as cluster:
        reader = CubeReader(array, scheduler=cluster.scheduler_address, padding=1, seals=seals)
        np.testing.assert_array_equal(reader.cubes(origins, 9), expected(voxels, origins, 9, 1))
        files[0].write_bytes(files[1].read_bytes())
        with pytest.raises(CorruptVolume, match="manifest"):
            reader.cubes(origins, 9)
