"""The tensor core of the time axis: exact sums, what it saves, and where it steps back."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.compressors import (
    COMPRESSORS,
    TEMPORAL,
    UnsuitableValues,
    decompress,
    fitted,
    reported,
    temporal,
)
from storage.compressors.frame import opened
from storage.compressors.slices import Jpeg2000
from storage.compressors.temporal import MOST, SPATIAL, Core, Temporal, factored, joined
from storage.readers import open_scan

Array = np.ndarray[Any, np.dtype[Any]]
DATA = Path(os.environ.get("TOMOTRAIN_DATA", Path(__file__).parents[3] / "shared" / "data"))
SPATIAL_SHAPE = (4, 32, 32)


def series(frames: int, rank: int, *, noise: float = 2.0, shape: tuple[int, ...] = SPATIAL_SHAPE) -> Array:
    """A few images, each mixed in by a course over time, in noise: float64, about -1,500 to 3,000."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 300, (rank, *(-(-side // 3) for side in shape)))
    images = np.kron(coarse, np.ones((1, 3, 3, 3)))[:, : shape[0], : shape[1], : shape[2]]
    courses = rng.normal(0, 0.6, (frames, rank))
    courses[:, 0] = 1
    return 800 + np.tensordot(courses, images, 1) + rng.normal(0, noise, (frames, *shape))


def with_core(data: bytes) -> bool:
    """Whether a file of `Temporal` holds components."""
    return bool(opened(data).payload[0] % 2)


@pytest.mark.parametrize(("frames", "dtype"), [(1, "int16"), (2, "uint8"), (7, "float32"), (150, "int16")])
def test_frames_come_back_within_the_step(frames: int, dtype: str) -> None:
    shape = (1, 3, 4) if frames == 150 else SPATIAL_SHAPE
    values = series(frames, min(3, frames), shape=shape)
    values = (values / 20 + 100).clip(0, 255).round() if dtype == "uint8" else values.round()
    values = values.astype(dtype)
    told = decompress(TEMPORAL.compress(values, step=6.0))
    assert told.dtype == values.dtype
    assert told.shape == values.shape
    assert np.square(told - values.astype(float)).mean() < 1.5 * 6.0**2 / 12


def test_sums_of_components_are_exact_however_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.integers(-(2**15), 2**15, (3, temporal.MOST_FRAMES)).astype(np.int16)
    components = rng.integers(-MOST, MOST + 1, (temporal.MOST_FRAMES, 1, 2, 5)).astype(np.int32)
    matrix[0], components[:, 0, 0, 0] = -(2**15), MOST
    exact = [
        [
            sum(int(q) * int(c) for q, c in zip(row, column, strict=True))
            for column in components.reshape(-1, 10).T
        ]
        for row in matrix
    ]
    assert abs(exact[0][0]) == 2**49
    core = Core(matrix, 2.0**15, components)
    for portion in (1, 3 * temporal.MOST_FRAMES, 1 << 22):
        monkeypatch.setattr(temporal, "PORTION", portion)
        assert joined(core, np.dtype("f8")).reshape(3, 10).astype(object).tolist() == exact
    wild = Core(matrix, 2.0**15, np.where(components == MOST, np.int32(2**31 - 1), components))
    assert np.array_equal(joined(wild, np.dtype("f8")), joined(core, np.dtype("f8")))


def test_as_many_components_are_kept_as_stand_above_the_noise() -> None:
    values = series(20, 4, noise=2.0)
    counts = [
        len(found.components) for noise in (0.1, 40.0, 1e9) if (found := factored(values, noise, bits=23))
    ]
    assert counts == [20, 4, 1]
    few = factored(series(40, 3, noise=0, shape=(1, 9, 13)), 0.0, bits=23)
    assert few is not None
    assert len(few.components) == 3
    assert np.allclose(joined(few, np.dtype("f8")), series(40, 3, noise=0, shape=(1, 9, 13)), atol=0.2)


def test_the_core_is_nearly_lossless_while_all_is_kept() -> None:
    values = series(9, 5)
    core = factored(values, 0.0, bits=23)
    assert core is not None
    gram = core.matrix.astype(float).T @ core.matrix / 2.0**30
    assert np.abs(gram - np.eye(9)).max() < 1e-4
    assert np.abs(joined(core, np.dtype("f8")) - values).max() < 2 * core.unit * 3
    energies = np.square(core.components.astype(float)).sum((1, 2, 3))
    assert all(a >= b for a, b in pairwise(energies))


def test_what_frames_share_is_stored_once() -> None:
    values = series(12, 2, noise=5).round().astype(np.int16)
    by_frame, core = (one.compress(values, step=30.0) for one in (COMPRESSORS["wavelet"], TEMPORAL))
    assert with_core(core)
    assert len(core) < 0.4 * len(by_frame)
    errors = [np.square(decompress(data) - values.astype(float)).mean() for data in (by_frame, core)]
    assert errors[1] < 1.1 * errors[0]


def test_where_frames_share_nothing_they_stay_as_they_are() -> None:
    apart = np.zeros((4, 4, 16, 16))
    for number, frame in enumerate(apart):
        frame[number] = np.random.default_rng(number).normal(0, 900, (16, 16))
    mixed = np.tensordot(np.linalg.qr(np.random.default_rng(9).normal(size=(4, 4)))[0], apart, 1)
    for values, frames_mix in ((apart, False), (mixed, True)):
        data = TEMPORAL.compress(values.round().astype(np.int16), step=20.0)
        by_frame = COMPRESSORS["wavelet"].compress(values.round().astype(np.int16), step=20.0)
        assert with_core(data) == frames_mix
        assert len(data) <= len(by_frame) + 5


def test_gaps_constants_and_very_many_frames_are_kept_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = series(3, 2).astype(np.float32)
    gap[1, 2, 3, 4], gap[2, 0, 0, 0] = np.nan, np.inf
    told = decompress(TEMPORAL.compress(gap, step=10.0))
    assert np.array_equal(np.isnan(told), np.isnan(gap))
    assert np.isinf(told[2, 0, 0, 0])
    same = np.full((4, 3, 5, 6), -7, np.int16)
    assert np.array_equal(decompress(TEMPORAL.compress(same, step=3.0)), same)
    none = np.zeros((4, 3, 5, 6), np.float32)
    assert not with_core(TEMPORAL.compress(none, step=3.0))
    huge = np.full((2, 1, 2, 2), 1e300)
    huge[1] = -1e300
    assert np.array_equal(decompress(TEMPORAL.compress(huge, step=1e290)), huge)
    monkeypatch.setattr(temporal, "MOST_FRAMES", 5)
    assert factored(series(6, 1), 0.0, bits=23) is None
    assert factored(series(5, 1), 0.0, bits=23) is not None


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda one: one.name)
def test_any_compressor_may_stand_behind_the_core(spatial: Any) -> None:
    values = series(6, 2).round().astype(np.int16)
    scale = spatial.setting(values)
    number = {"step": 30.0, "tolerance": 30.0, "quality": 60.0, "distance": 1.0}[scale.name]
    data = Temporal(spatial).compress(values, **{scale.name: number})
    assert with_core(data)
    psnr = reported(values, decompress(data), len(data), with_ssim=False).psnr
    assert psnr > 25
    assert len(data) < 0.9 * len(fitted(spatial, values, psnr=psnr).data)


def test_images_of_what_has_no_components_are_refused() -> None:
    for values in (series(1, 1), np.zeros((2, 3, 8, 8)), series(2, 1)[0]):
        with pytest.raises(UnsuitableValues, match="jpeg2000 over time takes 2 to 1,024 frames"):
            Temporal(Jpeg2000()).compress(values.astype(np.int16), quality=60)


@pytest.mark.skipif(not (DATA / "dev").is_dir(), reason="needs ../shared/data")
def test_a_real_series_is_a_fifth_smaller_at_least() -> None:
    with open_scan(DATA / "dev/nifti/sct_fmri_4d.nii.gz") as scan:
        values = np.stack([slab.voxels for slab in scan.slabs(6)][:12])
    data = [COMPRESSORS["wavelet"].compress(values, step=160.0), TEMPORAL.compress(values, step=140.0)]
    psnr = [reported(values, decompress(one), len(one), with_ssim=False).psnr for one in data]
    assert psnr[1] >= psnr[0]
    assert len(data[1]) <= 0.8 * len(data[0])
