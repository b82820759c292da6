"""The procedural store is a Zarr store like any other, and the forward pass stays small on it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr

from benchmarks.out_of_core import CHUNK, BodyStore, intensities
from storage.cubes import CubeReader


def dense(size: int) -> np.ndarray:
    axis = (np.arange(size) + 0.5) / size
    return intensities(axis, axis, axis)


def test_the_store_reads_the_same_through_zarr_and_through_the_cube_reader() -> None:
    size = 3 * CHUNK
    array = zarr.open_array(BodyStore(size), mode="r")
    volume = dense(size)
    assert np.array_equal(array[...], volume)
    origins = np.array([[0, 0, 0], [30, 40, 50], [87, 60, 87]])
    reader = CubeReader(array, cache_bytes=1 << 20, padding=0)
    cubes = reader.cubes(origins, 9)
    for cube, (z, y, x) in zip(cubes, origins, strict=True):
        assert np.array_equal(cube[0], volume[z : z + 9, y : y + 9, x : x + 9])
    assert 0 < reader.counts.bytes < volume.nbytes


def test_the_body_looks_the_same_at_every_size() -> None:
    coarse = dense(32).astype(float)
    fine = dense(96).astype(float).reshape(32, 3, 32, 3, 32, 3).mean(axis=(1, 3, 5))
    assert np.abs(fine - coarse).mean() < 10
    assert np.ptp(coarse) > 1000


def row_of(size: int, mode: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.out_of_core", str(size), mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_8192_cubed_within_two_gib_and_four_thousand_cubes() -> None:
    small, large, block = row_of(256, "paper"), row_of(8192, "paper"), row_of(8192, "block")
    assert (large["samples"], large["unique_samples"]) == (7488, 3720)
    assert large["unique_cubes"] <= 4000
    assert large["unique_cubes_all_sweeps"] <= 10_000
    assert large["unique_cubes"] <= 2 * small["unique_cubes"]
    assert large["peak_rss_mib"] <= 2048
    assert block["unique_cubes"] == block["unique_cubes_all_sweeps"] <= 4000
