"""The memory that `estimate` announces, against what a process of its own was seen to take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, sys
from pathlib import Path

import numpy as np

from models.cpic.embed import EmbedConfig, embed, estimate
from models.intensities import IntensityStatistics


class Waves:
    "A procedural scan of full rank: what it takes itself is no more than the cubes that it gives."

    def __init__(self, shape, channels):
        self.shape, self.channels = shape, channels

    def cubes(self, origins, size):
        cubes = np.empty((len(origins), self.channels, *size), np.int16)
        Z, Y, X = map(np.arange, size)
        for row, (z, y, x) in zip(cubes, origins, strict=True):
            key = ((z + Z)[:, None, None] * 7919 + (y + Y)[:, None] * 104729 + x + X) % 2003
            row[:] = 1000 * np.sin(key * np.arange(1, self.channels + 1)[:, None, None, None])
        return cubes


def resident(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024


shape, channels, settings = json.loads(sys.argv[1])
config = EmbedConfig(**settings)
announced = estimate(tuple(shape), channels, config).memory_bytes
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from what is resident now
before = resident("VmRSS:")
embed(Waves(tuple(shape), channels), config, IntensityStatistics(-1000.0, 1000.0, 0.0, 700.0))
print(json.dumps([resident("VmHWM:") - before, announced]))
"""

IDENTITY = {"encoder": "identity"}
CASES = {
    "identity, qtt": ([256, 256, 256], 1, IDENTITY | {"held_out": 200_000}),
    "identity, qtt, high rank": ([64, 64, 64], 1, IDENTITY | {"rank": 96}),
    "identity, tt": ([200, 60, 60], 1, IDENTITY | {"layout": "tt", "rank": 48}),
    "identity, channels": ([64, 64, 64], 8, IDENTITY | {"rank": 2, "held_out": 100_000}),
    "random_cpic, qtt": ([256, 256, 256], 1, {}),
    "random_cpic, qtt, rank 40": ([64, 64, 64], 1, {"rank": 40, "sweeps": 1}),
    "random_cpic, tt": ([100, 90, 80], 1, {"layout": "tt", "rank": 6, "sweeps": 1}),
    "random_cpic, scalar": ([128, 128, 128], 1, {"sampling": "scalar", "oversampling": 1, "sweeps": 2}),
    "identity, tolerance": ([64, 64, 64], 1, IDENTITY | {"tolerance": 1e-2, "rank": 12}),
    "random_cpic, many features": ([32, 32, 32], 2, {"n_dim": 200, "rank": 12, "sweeps": 1}),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts it this way")
@pytest.mark.parametrize("case", CASES)
def test_an_embedding_takes_no_more_memory_than_announced(case: str) -> None:
    command = [sys.executable, "-c", CHILD, json.dumps(CASES[case])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    grown, announced = json.loads(done.stdout)
    assert announced / 10 < grown <= announced
