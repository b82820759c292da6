"""C-PIC's forward pass on procedural volumes from 256^3 to 8192^3: do its cubes and its memory grow?

The volume is a Zarr store whose chunks (32^3 int16, zstd + crc32c) are computed when they are asked for:
a smooth body with organs, at the same place at every size. Nothing is on disk; what computing and compressing
the chunks costs is part of `seconds`, and is reported on its own as `generation_s` (CPU).

Per size and mode, in a process of its own: QTT, rank 10, 16 features of the random C-PIC encoder, 1,000
held-out voxels. Modes: `paper` takes each entry on its own, interpolates, and sweeps twice; `block` takes all
features of a voxel, interpolates, and sweeps once; `default` is what `embed` does, in blocks, oversampled.

`samples`, `unique_samples` and `unique_cubes` are those of the forward set; `..._all_sweeps` those of
everything that was looked at to choose it; `chunks_read` and `bytes_read` count all reading, held-out cubes
included. Ratios are the largest size over the smallest, in the paper's mode. At the largest size, `seconds`
and `peak_rss_mib` are the largest of any mode, and `unique_cubes` are those of `block`. Torch uses one thread
(its matrices are tiny), the reader as many as there are cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numcodecs
import numpy as np
import zarr
from google_crc32c import value as crc32c
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from benchmarks.memory import peak_rss_mib
from benchmarks.targets import Target, judged, show_targets

SIZES = (256, 1024, 4096, 8192)
MODES: dict[str, dict[str, Any]] = {
    "paper": {"sampling": "scalar", "oversampling": 1.0, "sweeps": 2},
    "block": {"sampling": "block", "oversampling": 1.0, "sweeps": 1},
    "default": {},
}
"""Settings of `EmbedConfig`. All sizes are measured in the first, the smallest and the largest in all."""
TARGETS = (
    Target("seconds", 60),
    Target("peak_rss_mib", 2048),
    Target("unique_cubes", 4000),
    Target("cubes_ratio", 2),
)
CHUNK = 32
CACHE_BYTES = 256 << 20
FAT, MUSCLE, AIR = -100.0, 60.0, -1000.0
ORGANS = (  # centre, radii (fractions of the volume, in z, y, x), added intensity
    ((0.45, 0.40, 0.62), (0.16, 0.12, 0.15), 80.0),
    ((0.55, 0.45, 0.35), (0.20, 0.10, 0.08), -250.0),
    ((0.50, 0.66, 0.50), (0.35, 0.06, 0.06), 400.0),
    ((0.30, 0.50, 0.45), (0.07, 0.09, 0.11), 120.0),
)


def run() -> dict[str, Any]:
    """One process per size and mode."""
    small, *_, large = SIZES
    rows = {
        mode: {str(size): measure(size, mode) for size in (SIZES if mode == "paper" else (small, large))}
        for mode in MODES
    }
    first, last = rows["paper"][str(small)], rows["paper"][str(large)]
    largest = [columns[str(large)] for columns in rows.values()]
    found = {
        "seconds": max(row["seconds"] for row in largest),
        "peak_rss_mib": max(row["peak_rss_mib"] for row in largest),
        "unique_cubes": rows["block"][str(large)]["unique_cubes"],
        "unique_cubes_all_sweeps": last["unique_cubes_all_sweeps"],
        "cubes_ratio": round(last["unique_cubes"] / first["unique_cubes"], 3),
        "time_ratio": round(last["seconds"] / first["seconds"], 3),
    }
    return {**found, "targets": judged(found, TARGETS), "modes": rows}


def show(result: dict[str, Any]) -> None:
    """Print a table per mode."""
    columns = (
        *("seconds", "cpu_s", "generation_s", "samples", "unique_samples", "unique_cubes"),
        *("unique_cubes_all_sweeps", "boxes_read", "chunks_read", "bytes_read", "peak_rss_mib"),
        *("centred_error", "upper_bound"),
    )
    heads = [(mode, size) for mode, rows in result["modes"].items() for size in rows]
    print(f"{'':<26}" + "".join(f"{mode:>12}" for mode, _ in heads))
    print(f"{'':<26}" + "".join(f"{size + '^3':>12}" for _, size in heads))
    for column in columns:
        cells = [result["modes"][mode][size][column] for mode, size in heads]
        print(f"{column:<26}" + "".join(f"{cell_text(cell):>12}" for cell in cells))
    show_targets(result["targets"])
    ratios = f"cubes {result['cubes_ratio']}, time {result['time_ratio']}"
    print(f"\n{SIZES[-1]}^3 over {SIZES[0]}^3, paper: {ratios}")


def cell_text(value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def measure(size: int, mode: str) -> dict[str, Any]:
    """One fresh process."""
    command = [sys.executable, "-m", "benchmarks.out_of_core", str(size), mode]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=900)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


class BodyStore(Store):
    """A read-only Zarr store with one array of size^3 int16, whose chunks are computed on demand."""

    def __init__(self, size: int) -> None:
        super().__init__(read_only=True)
        self._size = size
        self._metadata = _array_metadata(size)
        self._codec = numcodecs.Zstd(level=1)
        self._lock = threading.Lock()
        self.generation_s = 0.0

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The metadata, or a chunk `c/z/y/x`; whole objects only."""
        if byte_range is not None:
            raise NotImplementedError("this store has no shards to read parts of")
        make = (prototype or default_buffer_prototype()).buffer.from_bytes
        if key == "zarr.json":
            return make(self._metadata)
        if not key.startswith("c/"):
            return None
        started = time.thread_time()
        encoded = self._encoded([int(i) for i in key.split("/")[1:]])
        with self._lock:
            self.generation_s += time.thread_time() - started
        return make(encoded)

    def _encoded(self, index: list[int]) -> bytes:
        axes = [(np.arange(i * CHUNK, (i + 1) * CHUNK) + 0.5) / self._size for i in index]
        body: bytes = self._codec.encode(intensities(*axes))
        return body + int(crc32c(body)).to_bytes(4, "little")

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As `get_sync`."""
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get_sync`, for many."""
        return [self.get_sync(key, prototype=prototype, byte_range=part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Chunks always do."""
        return key == "zarr.json" or key.startswith("c/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BodyStore) and other._size == self._size

    __hash__ = None  # type: ignore[assignment]

    @property
    def supports_writes(self) -> bool:
        """No."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """No."""
        return False

    @property
    def supports_listing(self) -> bool:
        """No: it would be a long list."""
        return False

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refused."""
        self._check_writable()

    def list(self) -> AsyncIterator[str]:
        """Refused."""
        raise NotImplementedError("a procedural store lists nothing")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        return self.list()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        return self.list()


def _array_metadata(size: int) -> bytes:
    """What zarr itself would write for such an array."""
    store = MemoryStore()
    zarr.create_array(
        store,
        shape=(size,) * 3,
        dtype="<i2",
        chunks=(CHUNK,) * 3,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
    )
    return store._store_dict["zarr.json"].to_bytes()


def intensities(z: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int16]:
    """Hounsfield-like values of the body on a grid of coordinates in [0, 1]."""
    value = AIR + (MUSCLE - AIR) * _ellipsoid((z, y, x), (0.5, 0.5, 0.5), (0.55, 0.36, 0.42), 0.08)
    value += (FAT - MUSCLE) * _ellipsoid((z, y, x), (0.5, 0.3, 0.5), (0.5, 0.05, 0.3), 0.3)
    for centre, radii, added in ORGANS:
        value += added * _ellipsoid((z, y, x), centre, radii, 0.3)
    return np.rint(value).astype("<i2")


def _ellipsoid(
    axes: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    softness: float,
) -> NDArray[Any]:
    """1 inside, 0 outside, with an edge of width `softness` in units of the radii."""
    z, y, x = (
        np.square((axis - c) / r).astype(np.float32) for axis, c, r in zip(axes, centre, radii, strict=True)
    )
    square = z[:, None, None] + y[:, None] + x
    edge: NDArray[Any] = 0.5 * (1 - np.tanh((square - 1) / (2 * softness)))
    return edge


def child(size: int, mode: str) -> None:
    """Embed one volume and print the row."""
    import torch

    from models.cpic.embed import EmbedConfig, embed
    from models.intensities import IntensityStatistics
    from storage.cubes import CubeReader

    torch.set_num_threads(1)
    coarse = intensities(*[(np.arange(64) + 0.5) / 64] * 3)
    statistics = IntensityStatistics(
        float(coarse.min()), float(coarse.max()), float(coarse.mean()), float(coarse.std())
    )
    store = BodyStore(size)
    reader = CubeReader(zarr.open_array(store, mode="r"), cache_bytes=CACHE_BYTES, padding=AIR)
    wall, cpu = time.perf_counter(), time.process_time()
    embedding = embed(reader, EmbedConfig(**MODES[mode]), statistics)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    error = embedding.certificate.overall
    row = {
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu_seconds, 3),
        "generation_s": round(store.generation_s, 3),
        "samples": embedding.forward.samples,
        "unique_samples": embedding.forward.unique_samples,
        "unique_cubes": embedding.forward.unique_cubes,
        "unique_samples_all_sweeps": embedding.all_sweeps.unique_samples,
        "unique_cubes_all_sweeps": embedding.all_sweeps.unique_cubes,
        "boxes_read": reader.counts.cubes,
        "chunks_read": reader.counts.chunks,
        "bytes_read": reader.counts.bytes,
        "bytes_decoded": reader.counts.decoded_bytes,
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "max_rank": max(embedding.ranks),
        "centred_error": error.centred_error,
        "upper_bound": error.upper_bound,
        "certificate": embedding.certificate.to_json(),
    }
    print(json.dumps(row, allow_nan=False))


if __name__ == "__main__":
    child(int(sys.argv[1]), sys.argv[2])
