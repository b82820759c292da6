"""2,000 random 9^3 cubes of a 512^3 int16 volume: who reads them fastest, and at what memory?

Ways: `CubeReader`; a zarr loop; one Dask computation per cube; one tensorstore batch; numpy.memmap as the
bound (no decoding at all). Layouts: single chunks of 32^3 and 64^3 with zstd + crc32c, and the one that
volumes have here (32^3 in shards, with zstd's own checksum too). Every way runs in its own process, so that
its peak memory is its own; `cold` is its first call, `warm` its second on the same cubes (the operating
system's page cache is warm in both). Every answer is compared with the memmap's, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import peak_rss_mib

EDGE, COUNT, SIZE, SEED = 512, 2000, 9, 20261121
CACHE_BYTES = 256 << 20
REPEATS = {"cube_reader": 3, "tensorstore": 3, "zarr_loop": 3, "dask_per_cube": 1, "memmap": 3}
LAYOUTS = ("chunk32", "chunk64", "volume")

Cubes = NDArray[np.int16]
Read = Callable[[], Cubes]


def run() -> dict[str, Any]:
    """All ways on all layouts; seconds are medians. The keys without a layout are `chunk32`, cold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_volume(folder)
        reference = measure("memmap", "chunk32", folder)["digest"]
        layouts = {}
        for layout in LAYOUTS:
            rows = {way: repeated(way, layout, folder, reference) for way in REPEATS}
            layouts[layout] = rows
    first = layouts["chunk32"]
    ours = first["cube_reader"]
    return {
        **{f"{way}_s": row["cold_s"] for way, row in first.items()},
        "peak_rss_mib": ours["peak_rss_mib"],
        "ratio_zarr_loop": ratio(first, "zarr_loop"),
        "ratio_tensorstore": ratio(first, "tensorstore"),
        "layouts": layouts,
    }


def ratio(rows: dict[str, dict[str, float]], way: str) -> float:
    """How many times longer another way takes than ours, cold."""
    return round(rows[way]["cold_s"] / rows["cube_reader"]["cold_s"], 2)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    for layout, rows in result["layouts"].items():
        print(f"\n{layout}: {COUNT} cubes of {SIZE}^3 from {EDGE}^3 int16")
        print(f"  {'way':<15}{'cold s':>9}{'warm s':>9}{'CPU s':>9}{'peak MiB':>10}{'cold, ours = 1':>16}")
        for way, row in rows.items():
            print(
                f"  {way:<15}{row['cold_s']:9.3f}{row['warm_s']:9.3f}{row['cold_cpu_s']:9.3f}"
                f"{row['peak_rss_mib']:10.0f}{ratio(rows, way):16.2f}"
            )


def repeated(way: str, layout: str, folder: Path, reference: str) -> dict[str, float]:
    """Medians over fresh processes. Raises RuntimeError where a voxel differs."""
    rows = [measure(way, layout, folder) for _ in range(REPEATS[way])]
    if any(row["digest"] != reference for row in rows):
        raise RuntimeError(f"{way} on {layout} returned other voxels than the memmap")
    keys = ("cold_s", "warm_s", "cold_cpu_s", "peak_rss_mib")
    return {key: round(statistics.median(row[key] for row in rows), 4) for key in keys}


def measure(way: str, layout: str, folder: Path) -> dict[str, Any]:
    """One fresh process."""
    command = [sys.executable, "-m", "benchmarks.cubes", way, layout, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def make_volume(folder: Path) -> None:
    """A smooth body with scanner noise (zstd finds a ratio of about 1.7), in every layout."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    from storage.grid import VoxelGrid
    from storage.layout import create_group

    rng = np.random.default_rng(SEED)
    axis = np.linspace(-1, 1, EDGE, dtype=np.float32)
    body = np.empty((EDGE,) * 3, np.int16)
    for z in range(EDGE):
        radius = np.sqrt(axis[z] ** 2 + axis[:, None] ** 2 + axis**2)
        tissue = 900 * np.cos(6 * radius) - 1000 * (radius > 0.9)
        body[z] = tissue + rng.normal(0, 12, tissue.shape)
    body.tofile(folder / "memmap")
    for edge in (32, 64):
        array = zarr.create_array(
            folder / f"chunk{edge}",
            shape=body.shape,
            dtype=body.dtype,
            chunks=(edge,) * 3,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )
        array[...] = body
    group = create_group(str(folder / "group"), VoxelGrid(body.shape), None, body.dtype)
    group["0"][...] = body  # type: ignore[index]
    (folder / "volume").symlink_to(folder / "group" / "0")


def origins() -> NDArray[np.int64]:
    """Lowest corners of the cubes, all inside."""
    return np.random.default_rng(SEED + 1).integers(0, EDGE - SIZE, (COUNT, 3))


def by_cube_reader(path: Path) -> Read:
    """The product."""
    import zarr

    from storage.cubes import CubeReader

    reader = CubeReader(zarr.open_array(path, mode="r"), cache_bytes=CACHE_BYTES)
    corners = origins()
    return lambda: reader.cubes(corners, SIZE)[:, 0]


def by_zarr_loop(path: Path) -> Read:
    """What everybody writes first."""
    import zarr

    array: Any = zarr.open_array(path, mode="r")
    boxes = slices()
    return lambda: np.stack([array[box] for box in boxes])


def by_dask_per_cube(path: Path) -> Read:
    """One lazy array, one computation per cube."""
    import dask.array as da

    array = da.from_zarr(str(path))
    boxes = slices()
    return lambda: np.stack([array[box].compute(scheduler="threads") for box in boxes])


def by_tensorstore(path: Path) -> Read:
    """All reads in one batch, with a cache of the same size as ours."""
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    array = tensorstore.open(spec, context=context, open=True, read=True).result()
    boxes = slices()

    def read() -> Cubes:
        with tensorstore.Batch() as batch:
            futures = [array[box].read(batch=batch) for box in boxes]
        return np.stack([future.result() for future in futures])

    return read


def by_memmap(path: Path) -> Read:
    """The bound: nothing to decode."""
    array = np.memmap(path.parent / "memmap", np.int16, "r", shape=(EDGE,) * 3)
    boxes = slices()
    return lambda: np.stack([array[box] for box in boxes])


def slices() -> list[tuple[slice, ...]]:
    """The cubes as basic indices."""
    return [tuple(slice(o, o + SIZE) for o in corner) for corner in origins().tolist()]


WAYS: dict[str, Callable[[Path], Read]] = {
    "cube_reader": by_cube_reader,
    "zarr_loop": by_zarr_loop,
    "dask_per_cube": by_dask_per_cube,
    "tensorstore": by_tensorstore,
    "memmap": by_memmap,
}


def child(way: str, layout: str, folder: str) -> None:
    """Time two calls and print the row."""
    read = WAYS[way](Path(folder) / layout)
    wall, cpu = time.perf_counter(), time.process_time()
    cubes = read()
    cold, cold_cpu = time.perf_counter() - wall, time.process_time() - cpu
    wall = time.perf_counter()
    again = read()
    warm = time.perf_counter() - wall
    assert np.array_equal(cubes, again)
    row = {
        "cold_s": cold,
        "warm_s": warm,
        "cold_cpu_s": cold_cpu,
        "peak_rss_mib": peak_rss_mib(),
        "digest": hashlib.sha256(np.ascontiguousarray(cubes).tobytes()).hexdigest(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    child(*sys.argv[1:])
