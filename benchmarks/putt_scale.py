"""Large volumes, streamed from Zarr: how fast are they compressed, in how much memory, and read again?

A real 16-bit head (T1, 196 x 256 x 256, `../shared/data/dev/dicom/head_mr_T1_196.zip`) is repeated to a cube
by mirroring it at its faces: nothing is scaled or invented, and there are no seams. The cube is stored as
ingest stores a scan, and compressed by `putt` for 20:1 as the job `compress` does it, all levels of the
pyramid counted.

Per size one thread, in processes of their own: one that makes the cube, one that compresses it, one that
reads. `mvoxel_s` is of one writing of the whole: reading chunks, coding, decoding for errors and statistics,
coarser levels, checksums, and syncing to disk, per second of wall clock; `cpu_mvoxel_s` the same per second
that the process had a core, for machines that are shared; `two_mvoxel_s` the same per second of wall clock
with an idle process that helps (`storage.derived_help`), and `helped` the share of tiles that it coded.
`fit_s` is what finding the setting took, and `whole_mvoxel_s` is of all together, as many writings as there
were. `tile_ms` is the median of reading and decoding one tile of 64^3, drawn at random, each for the first
time; `overview_ms` the median of opening the volume and reading its coarsest level, which is no larger than
one tile. The operating system's cache is warm. `peak_rss_growth` is the largest size's peak over that of the
smallest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fields import DATA
from benchmarks.memory import peak_rss_mib
from benchmarks.targets import Target, judged, number, show_targets
from storage.checkpoints import Checkpoints
from storage.chunks import ChunkReader
from storage.compressors.goals import Goal
from storage.derived import Drafts
from storage.derived_compressed import Compressed, assisted, compressed
from storage.errors import LeaseLost
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.jobs import Progress
from storage.readers import open_scan
from storage.readers.base import ScanHeader, Slab
from storage.records import Derivation
from storage.volume import Volume

SIZES = ("256", "512", "1024")
SCAN = DATA / "dev/dicom/head_mr_T1_196.zip"
RATIO = 20.0
TILES, OVERVIEWS = 200, 9
LONGEST_S = 7200
IDLE_S = 0.02
TARGETS = (
    Target("mvoxel_s", 5, at_least=True),
    Target("peak_rss_mib", 1024),
    Target("tile_ms", 10),
    Target("overview_ms", 100),
)
COLUMNS = (
    *("mvoxel_s", "cpu_mvoxel_s", "two_mvoxel_s", "helped", "whole_mvoxel_s", "fit_s", "passes"),
    "peak_rss_mib",
    *("ratio", "level0_ratio", "psnr", "step", "tile_ms", "overview_ms", "reading_rss_mib"),
)

Array = NDArray[Any]
Row = dict[str, Any]


def run(sizes: Sequence[str] = SIZES) -> dict[str, Any]:
    """The sizes, the smallest first."""
    if unknown := sorted(set(sizes) - set(SIZES)):
        raise SystemExit(f"no size {', '.join(unknown)}: there are {', '.join(SIZES)}")
    if not SCAN.is_file():
        raise SystemExit(f"{SCAN.relative_to(DATA)} is not under TOMOTRAIN_DATA or ../shared/data")
    rows = {size: measured(int(size), SCAN) for size in SIZES if size in sizes}
    every = list(rows.values())
    found = {
        "mvoxel_s": min(row["mvoxel_s"] for row in every),
        "peak_rss_mib": max(row["peak_rss_mib"] for row in every),
        "peak_rss_growth": round(every[-1]["peak_rss_mib"] / every[0]["peak_rss_mib"], 3),
        "tile_ms": max(row["tile_ms"] for row in every),
        "overview_ms": max(row["overview_ms"] for row in every),
    }
    return {**found, "targets": judged(found, TARGETS), "scan": SCAN.name, "rows": rows}


def show(result: dict[str, Any]) -> None:
    """Print a column per size."""
    print(
        f"{result['scan']}, mirrored\n\n{'':<18}" + "".join(f"{size + '^3':>12}" for size in result["rows"])
    )
    for column in COLUMNS:
        cells = (number(row[column]) for row in result["rows"].values())
        print(f"{column:<18}" + "".join(f"{cell:>12}" for cell in cells))
    show_targets(result["targets"])
    print(f"\npeak, largest over smallest: {number(result['peak_rss_growth'])}")


def measured(size: int, scan: Path) -> Row:
    """One size, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        row: Row = {}
        for step in STEPS:
            row |= child(step, Path(folder), scan, size)
    return row


def child(step: str, folder: Path, scan: Path, size: int) -> Row:
    """One step in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.putt_scale", step, str(folder), str(scan), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=LONGEST_S, env=environment
    )
    row: Row = json.loads(done.stdout)
    return row


class Mirrored:
    """A cube that repeats an array (z, y, x), every other time turned round; fits `readers.base.Scan`."""

    warnings: tuple[str, ...] = ()

    def __init__(self, voxels: Array, size: int) -> None:
        self._voxels = voxels
        self._rows = [mirrored(side, size) for side in voxels.shape]
        self.header = ScanHeader("mirrored", VoxelGrid((size, size, size)), voxels.dtype)

    def slabs(self, depth: int) -> Iterator[Slab]:
        """Whole planes, one slab in memory at a time."""
        z, y, x = self._rows
        for start in range(0, len(z), depth):
            yield Slab(0, start, self._voxels[np.ix_(z[start : start + depth], y, x)])

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> Mirrored:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def mirrored(side: int, size: int) -> NDArray[np.int64]:
    """Places 0, 1, ... side - 1, side - 1, ... 1, 0, 0, 1, ...: `size` of them."""
    places = np.arange(size) % (2 * side)
    return np.minimum(places, 2 * side - 1 - places)


def make(folder: Path, scan: Path, size: int) -> Row:
    """Store the cube."""
    with open_scan(scan) as opened:
        voxels = np.concatenate([slab.voxels for slab in opened.slabs(64)])
    stored = ingest(Mirrored(voxels, size), folder / "source")
    return {"voxel_bytes": stored.voxel_bytes, "source_bytes": stored.stored_bytes}


class Watch:
    """How long the whole was written, however often, by the wall and by the process's clock."""

    def __init__(self) -> None:
        self._last, self._writes = self._now(), False
        self.wall = self.cpu = self.other = 0.0

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def report(self, progress: Progress) -> None:
        """Fits `storage.ingest.Report`."""
        self.lap()
        self._writes = progress.phase.startswith(("coding", "manifest"))

    def lap(self) -> None:
        """Count the time since the last report."""
        now = self._now()
        wall, cpu = now[0] - self._last[0], now[1] - self._last[1]
        if self._writes:
            self.wall, self.cpu = self.wall + wall, self.cpu + cpu
        else:
            self.other += wall
        self._last = now


def compress(folder: Path, scan: Path, size: int) -> Row:
    """Compress it for the ratio."""
    source = Volume.open(folder / "source")
    made, watch = timed(source, folder)
    peak = peak_rss_mib()
    made.written.publish(folder / "compressed")
    voxels, passes = source.stored.grid.voxels / 1e6, len(made.passes)
    kept = next(one for one in made.passes if made.setting == {"step": one.number})
    return {
        "mvoxel_s": passes * voxels / watch.wall,
        "cpu_mvoxel_s": passes * voxels / watch.cpu,
        "whole_mvoxel_s": voxels / (watch.wall + watch.other),
        "fit_s": watch.other,
        "passes": passes,
        "ratios": [one.ratio for one in made.passes],
        "ratio": kept.ratio,
        "level0_ratio": source.stored.voxel_bytes / made.written.level_bytes[0],
        "psnr": kept.psnr,
        "step": kept.number,
        "peak_rss_mib": peak,
    }


def timed(source: Volume, folder: Path) -> tuple[Compressed, Watch]:
    """One compression, with drafts in a folder."""
    watch = Watch()
    made = compressed(
        source,
        Goal("ratio", RATIO),
        compressor="putt",
        seed=0,
        drafts=Drafts(folder / "drafts", "job", 1),
        derivation=Derivation("source", source.stored.digest, "compress"),
        checkpoints=Checkpoints(folder / "plan", 1),
        report=watch.report,
    )
    watch.lap()
    return made, watch


def compress_helped(folder: Path, scan: Path, size: int) -> Row:
    """The same again, while another process helps."""
    source, shared = Volume.open(folder / "source"), folder / "helped"
    command = [sys.executable, "-m", "benchmarks.putt_scale", "help", str(folder), str(scan), str(size)]
    shared.mkdir()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as helper:
        try:
            while not (shared / "ready").exists():
                time.sleep(IDLE_S)
            made, watch = timed(source, shared)
        finally:
            helper.terminate()
    voxels, written = source.stored.grid.voxels / 1e6, made.written
    return {
        "two_mvoxel_s": len(made.passes) * voxels / watch.wall,
        "helped": written.helped / (written.made + written.helped),
    }


def assist(folder: Path, scan: Path, size: int) -> Row:
    """What an idle worker does, until it is ended."""
    source, shared = Volume.open(folder / "source"), folder / "helped"
    (shared / "ready").touch()
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        with suppress(LeaseLost):
            assisted(source, Goal("ratio", RATIO), drafts=Drafts(shared / "drafts", "job", 1))
        time.sleep(IDLE_S)
    return {}


def read(folder: Path, scan: Path, size: int) -> Row:
    """Decode tiles at random, and overviews."""
    volume = Volume.open(folder / "compressed")
    reader = ChunkReader(volume.array(0), seals=volume.manifest.seals)
    generator, tiles = np.random.default_rng(0), []
    for place in generator.permutation(np.prod(reader.grid_shape))[:TILES]:
        index = tuple(int(part) for part in np.unravel_index(place, reader.grid_shape))
        began = time.perf_counter()
        reader.chunk(index)
        tiles.append(time.perf_counter() - began)
    overviews = []
    for _ in range(OVERVIEWS):
        began = time.perf_counter()
        opened = Volume.open(folder / "compressed")
        coarsest = opened.array(len(opened.levels) - 1)
        shape = coarsest.shape
        ChunkReader(coarsest, seals=opened.manifest.seals).box((0,) * len(shape), shape)
        overviews.append(time.perf_counter() - began)
    return {
        "tile_ms": 1e3 * statistics.median(tiles),
        "tile_ms_95": 1e3 * float(np.percentile(tiles, 95)),
        "overview_ms": 1e3 * statistics.median(overviews),
        "reading_rss_mib": peak_rss_mib(),
    }


STEPS = {"make": make, "compress": compress, "compress_helped": compress_helped, "read": read}
"""In this order, each in a process of its own."""
ROLES = {**STEPS, "help": assist}


if __name__ == "__main__":
    print(json.dumps(ROLES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
