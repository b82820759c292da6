"""Blocks as bytes, parts of them, and Zarr arrays of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.putt.block import AS_IT_IS, CONSTANT, TRAIN, block_bytes, block_part, block_values
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


@pytest.mark.parametrize(
    "data", [b"", b"\x07abc", b"\x00\x01", b"\x01\x01", b"\x02nothing", b"\x01" + bytes(40)]
)
def test_what_is_no_block_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what is said depends on where it ends
        block_values(data, SHAPE, np.dtype("int16"))


# Zarr


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
