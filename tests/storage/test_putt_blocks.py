"""Blocks as bytes, parts of them, and Zarr arrays of them."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.putt.block import (
    AS_IT_IS,
    CONSTANT,
    FINEST,
    TRAIN,
    block_bytes,
    block_level,
    block_part,
    block_values,
    block_voxels,
)
from storage.putt.digits import Digits
from storage.putt.factorising import factorised
from storage.putt.zarr_codec import PuttCodec

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = (16, 20, 18)


def scan(shape: tuple[int, int, int] = SHAPE, dtype: str = "int16", seed: int = 0) -> Array:
    """A soft-edged ball on a slope, with a little noise: from -1,000 to 1,500."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    values = 2000 / (1 + np.exp(12 * (z**2 + y**2 + x**2 - 0.6))) - 900 + 200 * x
    return (values + np.random.default_rng(seed).normal(0, 8, shape)).round().astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("step", [2.0, 30.0])
def test_a_block_comes_back_within_its_step(dtype: str, step: float) -> None:
    values = (scan() // 10 + 100).astype(dtype) if dtype == "uint8" else (scan() + 1000).astype(dtype)
    told = block_values(block_bytes(values, step), SHAPE, values.dtype)
    assert told.dtype == values.dtype
    rounding = 0 if dtype.startswith("f") else 1 / 12
    assert np.square(told - values.astype(np.float64)).mean() < 1.2 * step**2 / 12 + rounding


def test_what_is_smallest_is_kept() -> None:
    noise = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    gap = scan(dtype="float32")
    gap[3, 4, 5] = np.nan
    for values, kind in (
        (np.full(SHAPE, -7, np.int16), CONSTANT),
        (scan(), TRAIN),
        (noise, AS_IT_IS),
        (gap, AS_IT_IS),
    ):
        data = block_bytes(values, 0.01 if values is noise else 20.0)
        assert data[0] == kind
        if kind != TRAIN:
            assert np.array_equal(block_values(data, SHAPE, values.dtype), values, equal_nan=kind == AS_IT_IS)


def test_integers_stay_within_their_dtype() -> None:
    values = np.where(np.random.default_rng(1).random((16, 16, 16)) < 0.5, 0, 255).astype(np.uint8)
    told = block_values(block_bytes(values, 120.0), (16, 16, 16), values.dtype)
    assert np.abs(told.astype(int) - values).max() <= 255
    assert told.min() < 40
    assert told.max() > 215


def test_floats_stay_within_their_dtype() -> None:
    most = np.finfo(np.float32).max
    values = np.where(np.random.default_rng(1).random((16, 16, 16)) < 0.5, -most, most)
    told = block_values(block_bytes(values, 1e38), (16, 16, 16), np.dtype(np.float32))
    assert np.isfinite(told).all()
    assert {told.min(), told.max()} == {-most, most}
    told = block_values(block_bytes(np.full((2, 2, 2), 1e300), 1.0), (2, 2, 2), np.dtype(np.float32))
    assert (told == most).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_part_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    sides = data.draw(st.tuples(*[st.sampled_from([1, 2, 5, 8, 17, 32])] * 3))
    shape = (sides[0], sides[1], sides[2])
    values = scan(shape, seed=data.draw(st.integers(0, 5)))
    coded = block_bytes(values, 25.0)
    starts = [data.draw(st.integers(0, side - 1)) for side in shape]
    stops = [data.draw(st.integers(start + 1, side)) for start, side in zip(starts, shape, strict=True)]
    z, y, x = (slice(*ends) for ends in zip(starts, stops, strict=True))
    whole = block_values(coded, shape, values.dtype)
    assert np.array_equal(block_part(coded, shape, values.dtype, (z, y, x)), whole[z, y, x])
    places = np.array(
        data.draw(st.lists(st.tuples(*[st.integers(0, side - 1) for side in shape]), min_size=1))
    )
    assert np.array_equal(block_voxels(coded, shape, values.dtype, places), whole[tuple(places.T)])


@pytest.mark.parametrize("shape", [(16, 32, 8), (9, 20, 3), (1, 1, 5)])
@pytest.mark.parametrize("kind", [TRAIN, AS_IT_IS])
def test_a_level_is_of_means_of_the_whole(shape: tuple[int, int, int], kind: int) -> None:
    """At far faces means are with what is repeated, near which a train's values are."""
    step = 25.0 if kind == TRAIN else 1e-12
    values = scan(shape, "float32")
    coded = block_bytes(values, step)
    assert coded[0] == kind
    whole = block_values(coded, shape, values.dtype).astype(np.float64)
    for level in range(1, Digits.of(shape).levels):
        widths = [min(2**level, whole_side) for whole_side in Digits.of(shape).padded]
        padded = np.pad(
            whole, [(0, -side % width) for side, width in zip(shape, widths, strict=True)], "edge"
        )
        split = [n for side, width in zip(padded.shape, widths, strict=True) for n in (side // width, width)]
        means = padded.reshape(split).mean(axis=(1, 3, 5))
        told = block_level(coded, shape, values.dtype, level)
        exact = all(side & (side - 1) == 0 for side in shape) or kind == AS_IT_IS
        assert told == pytest.approx(means, rel=1e-5, abs=0.02 if exact else step / 2)
    assert np.array_equal(block_level(coded, shape, values.dtype, 0), whole)


def test_levels_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"level 4 of a block of \(9, 8, 7\): there are levels from 0 to 3"):
        block_level(block_bytes(scan((9, 8, 7)), 20.0), (9, 8, 7), np.dtype(np.int16), 4)


NOISE = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        pytest.param(NOISE.normal(0, 1, (4, 4, 4)), 1e-30, id="finer than float64"),
        pytest.param(NOISE.normal(0, 1e200, (4, 4, 4)), 1e195, id="squares overflow"),
        pytest.param(np.full((4, 4, 4), 2**60 + 1), 1.0, id="no float64 holds it"),
        pytest.param(np.full((4, 4, 4), np.inf, np.float32), 1.0, id="infinite"),
        pytest.param(np.full((4, 4, 4), np.nan, np.float32), 1.0, id="NaN"),
    ],
)
def test_what_no_train_can_hold_keeps_its_bits(values: Array, step: float) -> None:
    data = block_bytes(values, step)
    assert data[0] == AS_IT_IS
    told = block_values(data, (4, 4, 4), values.dtype)
    assert told.tobytes() == values.tobytes()


@pytest.mark.parametrize("side", [8, 16, 32])
def test_no_sum_of_a_train_rounds_and_what_is_finer_keeps_its_bits(side: int) -> None:
    """Magnitudes of the last product's terms sum to less than 2^53: no order of them can matter."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, side * 1j) for _ in range(3))]
    field = np.exp(-2 * (x * x + y * y + z * z)) + 0.3 * np.sin(5 * x + 3 * y) * np.cos(4 * z)
    values = np.rint((field - field.min()) / np.ptp(field) * (2**32 - 1) - 2**31).astype(np.int32)
    step = 2**32 * side**1.5 / FINEST
    assert block_bytes(values, 0.99 * step)[0] == AS_IT_IS
    digits = Digits.of(values.shape)
    train = factorised(digits.split(values.astype(np.float64)), 1.01 * step)
    assert side < 32 or block_bytes(values, 1.01 * step)[0] == TRAIN
    magnitudes = np.abs(train.first) @ np.abs(train.right(1, digits.levels))
    assert 2**44 < magnitudes.max() < 2**53


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_values_at_the_ends_of_64_bits_do_not_wrap(dtype: str) -> None:
    limits = np.iinfo(dtype)
    noise = NOISE.integers(0, 2**55, SHAPE, dtype=dtype)
    values = np.where(scan() > 0, limits.max - noise, limits.min + noise)
    step = 2.0**59
    data = block_bytes(values, step)
    assert data[0] == TRAIN
    told = block_values(data, SHAPE, values.dtype)
    assert np.abs(told.astype(float) - values.astype(float)).max() < 3 * step


@pytest.mark.parametrize("step", [0.001, 30.0])
def test_bytes_are_little_endian_whatever_the_values_are(step: float) -> None:
    big = scan().astype(">i2")
    data = block_bytes(big, step)
    assert data == block_bytes(big.astype("<i2"), step)
    assert np.array_equal(block_values(data, SHAPE, big.dtype), block_values(data, SHAPE, np.dtype("<i2")))


PLAIN = block_bytes(np.full(SHAPE, np.nan, np.float32), 1.0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no block"),
        (b"\x07abc", "no block"),
        (b"\x00\x01", "no block"),
        (b"\x00" + struct.pack("<d", float("nan")), "not finite"),
        (b"\x01\x01", "ends before its train"),
        (b"\x01" + bytes(40), "a step is above 0"),
        (b"\x01" + struct.pack("<dd", 1.0, float("inf")) + bytes(40), "both are finite"),
        (b"\x01" + struct.pack("<dd", 1.0, 0.0) + b"\xff" * 40, "without an end"),
        (b"\x01" + struct.pack("<dd", 1.0, 0.0) + b"\xff\xff\x03" + bytes(9), "65535 bytes announced, 9"),
        (PLAIN[:9], "values of 0 bytes in 0 are announced"),
        (PLAIN[:-2], "are announced: there are"),
        (PLAIN[:5] + b"\xff\xff\xff\x7f" + PLAIN[9:], "values of 2147483647 bytes"),
    ],
)
def test_what_is_no_block_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        block_values(data, SHAPE, np.dtype("float32"))


# Zarr


def chunk_bytes(values: Array, fill: float = 0, step: float = 20.0) -> bytes:
    return PuttCodec(step).chunk_bytes(values, fill)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_padding_costs_four_bytes_and_comes_back_exactly(data: st.DataObject) -> None:
    sides = data.draw(st.tuples(*[st.integers(1, 16)] * 3))
    fill = data.draw(st.sampled_from([0, -5, 77]))
    values = scan((sides[0], sides[1], sides[2]))
    values[-1, -1, -1] = fill + 1
    padded = np.full((16, 16, 16), fill, values.dtype)
    inside = tuple(map(slice, sides))
    padded[inside] = values
    coded = chunk_bytes(padded, fill)
    alone = block_bytes(values, 20.0)
    assert len(coded) == len(alone) + (1 if sides == (16, 16, 16) else 4)
    told = PuttCodec(20.0).chunk_values(coded, (16, 16, 16), padded.dtype, fill)
    assert np.array_equal(told[inside], block_values(alone, values.shape, values.dtype))
    told = told.copy()
    told[inside] = fill
    assert (told == fill).all()


@pytest.mark.parametrize(("fill", "other"), [(np.nan, 0.0), (0.0, -0.0), (-1.5, np.nan)])
def test_fill_is_known_by_its_bits(fill: float, other: float) -> None:
    chunk = np.full((8, 8, 8), fill, np.float32)
    assert chunk_bytes(chunk, fill) == b"\x01"
    chunk[2, 3, 1] = other
    coded = chunk_bytes(chunk, fill)
    assert coded[:4] == b"\x02\x03\x04\x02"
    told = PuttCodec(1.0).chunk_values(coded, (8, 8, 8), chunk.dtype, fill)
    assert np.array_equal(told, chunk, equal_nan=True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x02\x00\x01\x01", r"an extent of \(0, 1, 1\) in a chunk of \(8, 8, 8\)"),
        (b"\x02\x09\x01\x01", r"an extent of \(9, 1, 1\)"),
        (b"\x02\x01\x01" + b"\xff" * 8 + b"\x7f", r"an extent of \(1, 1, \d{18,}\)"),
        (b"\x02\x01\x01" + b"\xff" * 12, "without an end"),
        (b"\x02\x01", "without an end"),
        (b"\x01\x00", "no chunk of this version"),
        (b"\x03", "no chunk of this version"),
        (b"", "no chunk of this version"),
    ],
)
def test_extents_that_cannot_be_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PuttCodec(1.0).chunk_values(data, (8, 8, 8), np.dtype("int16"), 0)


@pytest.mark.parametrize("step", [0.01, 20.0])
def test_altered_and_truncated_chunks_end_in_an_error_or_in_values(step: float) -> None:
    values = np.zeros((8, 8, 8), np.int16)
    values[:8, :7, :8] = scan((8, 7, 8))
    sound, rng = chunk_bytes(values, step=step), np.random.default_rng(0)
    errors = 0
    for place in range(len(sound)):
        altered = bytearray(sound)
        altered[place] ^= 1 << int(rng.integers(8))
        for data in (bytes(altered), sound[:place]):
            try:
                told = PuttCodec(step).chunk_values(data, (8, 8, 8), values.dtype, 0)
                assert told.shape == (8, 8, 8)
            except ValueError:
                errors += 1
    assert errors > len(sound) / 2


def stored(folder: Path, values: Array, **how: Any) -> zarr.Array[Any]:
    array = zarr.create_array(
        folder / "scan.zarr",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1,) * (values.ndim - 3) + (16, 16, 16),
        serializer=PuttCodec(**{"step": 20.0, **how}),
        compressors=None,
        shards=(1,) * (values.ndim - 3) + (32, 32, 32),
    )
    array[:] = values
    return array


def test_any_reader_opens_an_array_of_blocks(tmp_path: Path) -> None:
    values = scan((40, 33, 50))
    written = stored(tmp_path, values)
    metadata = json.loads((tmp_path / "scan.zarr" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["configuration"]["codecs"][0] == {
        "name": PuttCodec.name,
        "configuration": {"step": 20.0, "version": 1},
    }
    again = zarr.open_array(tmp_path / "scan.zarr", mode="r")
    assert again.dtype == values.dtype
    assert np.array_equal(again[3:20, 30:33, 1:40], written[:][3:20, 30:33, 1:40])
    assert np.sqrt(np.square(again[:] - values.astype(float)).mean()) < 0.4 * 20
    assert again.nbytes_stored() < 0.35 * values.nbytes


def test_chunks_at_far_faces_cost_what_they_hold(tmp_path: Path) -> None:
    values = scan((17, 17, 17))
    whole = stored(tmp_path, values)
    corner = block_bytes(values[16:, 16:, 16:], 20.0)
    edges = sum(
        len(block_bytes(values[z, y, x], 20.0))
        for z, y, x in itertools.product((slice(16), slice(16, 17)), repeat=3)
    )
    assert len(corner) == 9
    assert whole.nbytes_stored() < edges + 7 * 4 + 1 + 16 * 8 + 4 + 2000


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_only_integers_and_floats_are_blocks(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="integers and floats can be compressed"):
        stored(tmp_path, np.zeros((16, 16, 16), dtype))


def test_time_and_channels_are_blocks_of_their_own(tmp_path: Path) -> None:
    values = np.stack([scan((16, 16, 16), seed=seed) for seed in range(3)])
    again = stored(tmp_path, values)
    for number in range(3):
        alone = block_values(block_bytes(values[number], 20.0), (16, 16, 16), values.dtype)
        assert np.array_equal(again[number], alone)


def test_steps_and_versions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for step in (0.0, -3.0, float("nan"), "4"):
        with pytest.raises(ValueError, match="must be above 0 and finite"):
            PuttCodec(step)  # type: ignore[arg-type]
    stored(tmp_path, scan((16, 16, 16)))
    file = tmp_path / "scan.zarr" / "zarr.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2 of the format, this Tomotrain reads 1: use a newer one"):
        zarr.open_array(tmp_path / "scan.zarr", mode="r")
    with pytest.raises(ValueError, match="only the last three sides may be above 1"):
        zarr.create_array(
            tmp_path / "other.zarr",
            shape=(4, 16, 16, 16),
            chunks=(4, 16, 16, 16),
            dtype="int16",
            serializer=PuttCodec(3.0),
            compressors=None,
        )[:] = 5 * np.random.default_rng(0).integers(0, 9, (4, 16, 16, 16))
