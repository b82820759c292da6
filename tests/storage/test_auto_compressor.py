"""A choice among all compressors is as small as the best of them, and searches on a part of what is large."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from storage.compressors import (
    AUTO,
    BOUNDED,
    COMPRESSORS,
    TEMPORAL,
    UnreachableTarget,
    UnsuitableValues,
    decompress,
    fitted,
)
from storage.compressors.auto import Auto
from storage.compressors.base import Framed
from storage.compressors.mosaic import mosaic
from storage.compressors.plain import Zstandard
from storage.compressors.zfp import Zfp

Array = np.ndarray[Any, np.dtype[Any]]


def ball(shape: tuple[int, ...] = (8, 33, 20), noise: float = 8.0) -> Array:
    """A soft ball of -1,000 to 1,500 in noise."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[-3:]), indexing="ij")
    values = 2500 / (1 + np.exp(9 * (sum(axis**2 for axis in axes) - 0.5))) - 1000
    return values + np.random.default_rng(0).normal(0, noise, shape)


def woven() -> Array:
    """What factorises: a coarse pattern times a fine one."""
    rng = np.random.default_rng(0)
    return np.round(900 * np.kron(rng.normal(size=(2, 8, 6)), rng.normal(size=(4, 4, 4)))).astype(np.int16)


def labels() -> Array:
    """Few values, in large regions."""
    return (ball(noise=0) // 500).astype(np.uint8)


def moving() -> Array:
    """Five frames of the same ball in other brightness."""
    brightness = np.linspace(0.8, 1.2, 5)[:, None, None, None]
    noise = np.random.default_rng(1).normal(0, 8, (5, 4, 24, 20))
    return (brightness * ball((4, 24, 20), 0.0) + noise).round().astype(np.int16)


def every_one(values: Array, targets: dict[str, float]) -> list[Any]:
    """The files of all registered compressors that reach a target."""
    found = []
    for one in (*COMPRESSORS.values(), TEMPORAL):
        try:
            found.append(fitted(one, values, **targets))
        except (UnreachableTarget, UnsuitableValues):
            continue
    return found


@pytest.mark.parametrize(
    ("values", "targets", "winners"),
    [
        (ball((16, 48, 40)).round().astype(np.int16), {"ratio": 12.0}, {"putt", "wavelet", "jpeg2000"}),
        (woven(), {"psnr": 35.0}, {"putt", "tt_svd"}),
        (labels(), {"psnr": 50.0}, {name for name, one in COMPRESSORS.items() if one.lossless}),
        (moving(), {"psnr": 44.0}, {"tucker", "temporal"}),
    ],
    ids=["ball", "woven", "labels", "frames"],
)
def test_the_choice_is_as_small_as_the_best_of_all(
    values: Array, targets: dict[str, float], winners: set[str]
) -> None:
    found = AUTO.fitted(values, **targets)
    told = decompress(found.data)
    assert found.compressor in winners
    assert np.array_equal(AUTO.decompress(found.data), told)
    assert told.dtype == values.dtype
    others = every_one(values, targets)
    assert len(others) >= 4
    if "ratio" in targets:
        assert found.report.ratio >= targets["ratio"]
        assert found.report.psnr >= max(other.report.psnr for other in others) - 0.1
    else:
        assert found.report.psnr >= targets["psnr"]
        assert len(found.data) <= 1.01 * min(len(other.data) for other in others)


def test_a_bound_on_integers_costs_no_more_than_the_bounded_one() -> None:
    values = ball((4, 17, 18)).round().astype(np.int16)
    found = AUTO.fitted(values, bound=3.7)
    assert np.abs(decompress(found.data).astype(int) - values).max() <= 3
    assert len(found.data) <= len(BOUNDED.compress(values, delta=3))


def test_an_error_is_its_setting() -> None:
    values = ball((4, 17, 18)).astype(np.float32)
    told = decompress(AUTO.compress(values, error=7.0))
    assert 4 < np.sqrt(np.square(told - values.astype(float)).mean()) <= 7 * (1 + 1e-9)
    same = np.full((2, 3, 4), 7, np.int16)
    assert np.array_equal(decompress(AUTO.compress(same, error=2.0)), same)
    for setting in ({}, {"step": 3.0}, {"error": 0.0}, {"error": float("nan")}):
        with pytest.raises(ValueError, match="auto"):
            AUTO.compress(values, **setting)


def test_what_is_not_installed_or_cannot_take_the_values_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    gap = ball((4, 17, 18)).astype(np.float32)
    gap[1, 2, 3] = np.nan
    found = AUTO.fitted(gap, ratio=1.05)
    assert found.compressor in ("putt", "blosc", "zstd")
    assert np.array_equal(np.isnan(decompress(found.data)), np.isnan(gap))
    with pytest.raises(UnsuitableValues, match="auto: no compressor that is installed takes"):
        Auto((Zfp(),)).fitted(gap, ratio=2)
    with pytest.raises(UnsuitableValues, match="values of dtype bool"):
        AUTO.fitted(gap > 0, ratio=2)


def test_a_target_that_nobody_reaches_says_what_can_be_had() -> None:
    with pytest.raises(UnreachableTarget, match=r"auto cannot reach a ratio of 1e\+09 .* nearest is") as told:
        AUTO.fitted(ball((4, 17, 18)).round().astype(np.int16), ratio=1e9)
    assert told.value.best.report.ratio > 10
    with pytest.raises(ValueError, match="zfp wrote these bytes, among which auto does not choose"):
        Auto((Zstandard(),)).decompress(Zfp().compress(ball((4, 4, 4)), tolerance=1.0))


@dataclass(frozen=True)
class Counted(Zfp):
    """zfp, which remembers how many voxels it was given each time."""

    sizes: list[int] = field(default_factory=list)

    def packed(self, values: Array, number: float) -> bytes:
        self.sizes.append(values.size)
        return super().packed(values, number)


@pytest.mark.parametrize("targets", [{"ratio": 9.0}, {"psnr": 48.0}])
def test_a_large_volume_is_tried_as_a_whole_only_a_few_times(targets: dict[str, float]) -> None:
    values = ball((70, 200, 192)).astype(np.float32)
    compressor: Framed = Counted()
    found = fitted(compressor, values, **targets)
    assert sum(size == values.size for size in compressor.sizes) <= 6
    assert len(compressor.sizes) > 3
    if "ratio" in targets:
        assert 9 <= found.report.ratio <= 9 * 1.005
    else:
        assert 48 <= found.report.psnr <= 48.02


def test_a_mosaic_is_made_of_blocks_of_the_whole_and_its_extremes() -> None:
    values = np.arange(70 * 200 * 200, dtype=np.int32).reshape(70, 200, 200)
    part = mosaic(values, 1 << 20)
    assert part is not None
    assert part.shape == (64, 128, 128)
    assert part.reshape(-1)[:2].tolist() == [0, values.size - 1]
    starts = {tuple(np.argwhere(values == part[1, row, column])[0]) for row in (0, 64) for column in (0, 64)}
    assert len(starts) == 4
    for z, y, x in starts:
        assert (z, y % 64, x % 64) == (1, 0, 0)
        where = np.argwhere(part == values[z, y, x])[0]
        block = part[1:, where[1] : where[1] + 64, where[2] : where[2] + 64]
        assert np.array_equal(block, values[1:64, y : y + 64, x : x + 64])
    assert mosaic(values[:, :70, :70], 1 << 20) is None
    frames = mosaic(np.zeros((3, 30, 256, 256), np.int16), 1 << 20)
    assert frames is not None
    assert frames.shape == (3, 30, 64, 64)
