"""The reader that docs/compression.md shows, as it stands there, against Zarr with our codec; and its range
decoder, written from the page, against the library that writes.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from storage.putt.coder import MODELS
from storage.putt.tables import TABLES
from storage.putt.zarr_codec import PuttCodec

DOCS = Path(__file__).resolve().parents[2] / "docs" / "compression.md"


def documented() -> dict[str, Any]:
    """The names that the page's one block of Python defines."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names


def test_the_documented_reader_reads_every_tile(tmp_path: Path) -> None:
    shape, chunk, shard = (70, 90, 40), (32, 32, 32), (64, 64, 64)
    z, y, x = np.indices(shape)
    voxels = (400 * np.sin(z / 9) * np.cos(y / 7) + 3 * x).astype(np.int16)
    voxels[:, 64:] = 0
    voxels[:32, :32, :32] = 7
    voxels[32:64, :32, :32] = np.random.default_rng(0).integers(-9999, 9999, (32, 32, 32))
    array = zarr.create_array(
        tmp_path / "0",
        shape=shape,
        dtype=np.int16,
        chunks=chunk,
        shards=shard,
        serializer=PuttCodec(4.0),
        compressors=Crc32cCodec(),
        config={"write_empty_chunks": True},
    )
    array[:] = voxels
    tile, expected = documented()["tile"], np.asarray(array[:])
    for at in product(range(2), range(2), range(1)):
        for place in product(range(2), repeat=3):
            low = [64 * i + 32 * j for i, j in zip(at, place, strict=True)]
            if all(a < n for a, n in zip(low, shape, strict=True)):
                where = tuple(slice(a, a + 32) for a in low)
                want = expected[where]
                np.testing.assert_array_equal(
                    tile(tmp_path / "0", at, place)[tuple(map(slice, want.shape))], want
                )


def intervals(table: NDArray[np.float32]) -> list[int]:
    """c[0], ..., c[n]."""
    sums = np.cumsum(np.concatenate([[0], table]), dtype=np.float32)
    scale = np.float32(2**24 - len(table)) / sums[-1]
    starts = np.floor(sums[:-1] * scale).astype(np.int64) + np.arange(len(table))
    return [*starts.tolist(), 2**24]


def symbols_of(words: list[int], starts: list[int], count: int) -> list[int]:
    """The first so many symbols, all of one table."""
    rest, whole, found = [*words[2:], 0, 0], 2**64, []
    low, size, point = 0, whole - 1, words[0] << 32 | (words[1] if len(words) > 1 else 0)
    for _ in range(count):
        unit = size >> 24
        symbol = int(np.searchsorted(starts, (point - low) % whole // unit, "right")) - 1
        found.append(symbol)
        low = (low + unit * starts[symbol]) % whole
        size = unit * (starts[symbol + 1] - starts[symbol])
        if size < 2**32:
            low, size, point = (low << 32) % whole, size << 32, (point << 32) % whole | rest.pop(0)
    return found


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_the_documented_range_decoder_reads_what_the_library_writes(number: int) -> None:
    table = TABLES[number]
    assert table.dtype == np.float32
    exact = table.astype(np.float64)
    drawn = np.random.default_rng(number).choice(len(table), size=400, p=exact / exact.sum())
    written = np.concatenate([drawn, np.arange(len(table))]).astype(np.int32)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(written, MODELS[number])
    words = encoder.get_compressed().tolist()
    assert symbols_of(words, intervals(table), len(written)) == written.tolist()
