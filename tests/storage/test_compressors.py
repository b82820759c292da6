"""Compressors behind one protocol: what comes back, how well, and what is refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from storage.compressors import (
    BOUNDED,
    COMPRESSORS,
    DamagedBytes,
    MissingPeer,
    NewerFormat,
    UnreachableTarget,
    UnsuitableValues,
    decompress,
    fitted,
    reported,
)
from storage.compressors.bounded import TRAIN, Bounded, _block, _values, quantised
from storage.compressors.frame import MAGIC, Frame
from storage.compressors.parts import apart, together
from storage.compressors.putt import Putt
from storage.compressors.report import ssim

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = (10, 19, 23)
LOSSLESS = [name for name, one in COMPRESSORS.items() if one.lossless]
LOSSY = [name for name, one in COMPRESSORS.items() if not one.lossless]
ANY_DTYPE = ["putt", "blosc", "zstd"]
SMALL_DTYPES = ["uint8", "int16", "uint16", "int32"]


def scan(dtype: str = "int16", shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Array:
    """A soft ball in noise: below 0 where the dtype has it."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[-3:]), indexing="ij")
    ball = 1 / (1 + np.exp(9 * (sum(axis**2 for axis in axes) - 0.5)))
    noise = np.random.default_rng(seed).normal(0, 0.01, shape)
    height, low = (220, 15) if dtype == "uint8" else (3000, 200 if dtype.startswith("u") else -1000)
    values = low + height * (ball + noise)
    return (values if dtype.startswith("f") else values.round()).astype(dtype)


def finest(name: str, values: Array) -> dict[str, float]:
    setting = COMPRESSORS[name].setting(values)
    return {} if setting is None else {setting.name: setting.finest}


def dtypes(name: str) -> list[str]:
    return [*SMALL_DTYPES] if "jpeg" in name else [*SMALL_DTYPES, "float32"]


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("shape", [SHAPE, (2, 5, 17, 9), (1, 1, 1), (1, 1, 7), (3, 1, 2)])
def test_what_was_compressed_comes_back(name: str, shape: tuple[int, ...]) -> None:
    for dtype in dtypes(name):
        values = scan(dtype, shape)
        data = COMPRESSORS[name].compress(values, **finest(name, values))
        told = decompress(data)
        assert told.dtype == values.dtype
        assert told.shape == values.shape
        if COMPRESSORS[name].lossless:
            assert np.array_equal(told, values)
        elif name != "jpeg2000" or min(shape[-2:]) > 4:
            assert np.abs(told - values.astype(float)).max() <= max(1.0, 0.02 * float(np.ptp(values)))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_is_constant_stays_so(name: str) -> None:
    for number in (0, -7):
        values = np.full(SHAPE, number, np.int16)
        told = decompress(COMPRESSORS[name].compress(values, **finest(name, values)))
        assert np.array_equal(told, values)


@pytest.mark.parametrize("name", LOSSY)
def test_a_coarser_setting_is_smaller_and_worse(name: str) -> None:
    values = scan("int16", (4, 32, 32))
    setting = COMPRESSORS[name].setting(values)
    assert setting is not None
    reports = []
    for share in (0.2, 0.4, 0.6, 0.8):
        data = COMPRESSORS[name].compress(values, **{setting.name: setting.at(share)})
        reports.append(reported(values, decompress(data), len(data), with_ssim=False))
    for fine, coarse in pairwise(reports):
        assert coarse.ratio >= fine.ratio
        assert coarse.psnr <= fine.psnr + 0.01
    assert reports[-1].ratio > 2 * reports[0].ratio


@pytest.mark.parametrize("name", LOSSY)
def test_targets_are_met_and_not_by_more_than_they_need(name: str) -> None:
    values = scan("int16", (4, 32, 32))
    compressor = COMPRESSORS[name]
    by_ratio = fitted(compressor, values, ratio=6)
    by_ranks = name in ("tt_svd", "tucker")
    assert 6 <= by_ratio.report.ratio <= 6 * (1.2 if by_ranks else 1.02)
    assert by_ratio.report.ratio == values.nbytes / len(by_ratio.data)
    by_psnr = fitted(compressor, values, psnr=46)
    assert 46 <= by_psnr.report.psnr <= (49 if by_ranks else 46.2)
    assert by_psnr.report == reported(values, decompress(by_psnr.data), len(by_psnr.data), with_ssim=False)


def test_a_peak_and_a_bound_are_targets_too() -> None:
    values = scan("int16", (8, 24, 24))
    putt, zfp = COMPRESSORS["putt"], COMPRESSORS["zfp"]
    by_peak = fitted(zfp, values, psnr=46, peak=6000)
    assert by_peak.report.peak == 6000
    mean_square = np.square(decompress(by_peak.data) - values.astype(float)).mean()
    assert 46 <= 10 * np.log10(6000**2 / mean_square) <= 46.1
    by_bound = fitted(putt, values, bound=60)
    assert 45 <= np.abs(decompress(by_bound.data) - values.astype(int)).max() <= 60


def test_targets_that_cannot_be_met_say_what_can() -> None:
    values = scan()
    with pytest.raises(UnreachableTarget, match=r"putt cannot reach a ratio of 1e\+06 .* nearest is") as told:
        fitted(COMPRESSORS["putt"], values, ratio=1e6)
    best = told.value.best
    assert f"{best.report.ratio:.4g}" in str(told.value)
    assert best.report.ratio == values.nbytes / len(best.data) > 20
    with pytest.raises(UnreachableTarget, match=r"blosc cannot reach a ratio of 50 .*inf dB.*without loss"):
        fitted(COMPRESSORS["blosc"], values, ratio=50)
    for targets in ({}, {"ratio": 3, "psnr": 40}):
        with pytest.raises(ValueError, match="one of ratio, psnr and bound"):
            fitted(COMPRESSORS["putt"], values, **targets)
    for targets in ({"ratio": -1}, {"psnr": float("nan")}):
        with pytest.raises(ValueError, match="must be at least 0"):
            fitted(COMPRESSORS["putt"], values, **targets)


def test_float32_factors_cannot_keep_every_bit() -> None:
    with pytest.raises(UnreachableTarget, match="tt_svd cannot reach 300 dB"):
        fitted(COMPRESSORS["tt_svd"], scan("float32"), psnr=300)


def test_lossless_compressors_meet_what_they_can() -> None:
    values = scan()
    for target in ({"ratio": 1.1}, {"psnr": 90.0}, {"bound": 0.0}):
        assert np.array_equal(decompress(fitted(COMPRESSORS["blosc"], values, **target).data), values)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_altered_bytes_are_found_before_they_are_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = scan("uint8", (4, 6, 5))
    data = COMPRESSORS[name].compress(values, **finest(name, values))

    def decoding(*_: object) -> Array:
        raise AssertionError("decoded")

    monkeypatch.setattr(type(COMPRESSORS[name]), "unpacked", decoding)
    with pytest.raises(AssertionError, match="decoded"):
        decompress(data)
    for stop in range(0, len(data), 7):
        with pytest.raises(DamagedBytes):
            decompress(data[:stop])
    for at in [*range(8), *range(9, len(data), 11), len(data) - 1]:
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        with pytest.raises(DamagedBytes):
            decompress(bytes(altered))
    with pytest.raises(DamagedBytes):
        decompress(data + b"\0")


def test_a_newer_format_another_compressor_and_odd_bytes_are_told_apart() -> None:
    data = COMPRESSORS["zstd"].compress(scan())
    newer = bytearray(data)
    newer[len(MAGIC)] = 2
    with pytest.raises(NewerFormat, match="version 2 of the format, this Tomotrain reads 1: use a newer one"):
        decompress(bytes(newer))
    with pytest.raises(ValueError, match="zstd wrote these bytes, not putt"):
        COMPRESSORS["putt"].decompress(data)
    with pytest.raises(ValueError, match="'mp3' wrote these bytes; known are putt"):
        decompress(Frame("mp3", np.dtype("u1"), (1, 1, 1), b"").bytes())
    with pytest.raises(DamagedBytes, match="9 bytes that begin with 6e6f2073 are no compressed volume"):
        decompress(b"no scan b")


def test_settings_that_are_none_are_refused() -> None:
    values = scan()
    for setting in ({}, {"quality": 3.0}, {"step": 1.0, "quality": 3.0}):
        with pytest.raises(ValueError, match=r"putt is set by step = \.\.\., got"):
            COMPRESSORS["putt"].compress(values, **setting)
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0 and finite"):
            COMPRESSORS["putt"].compress(values, step=step)
    with pytest.raises(ValueError, match="blosc is lossless and has no step"):
        COMPRESSORS["blosc"].compress(values, step=1.0)


def test_values_that_cannot_be_taken_are_refused() -> None:
    for values in (
        np.zeros((2, 2)),
        np.zeros((0, 3, 3)),
        np.zeros((2, 2, 2), bool),
        np.zeros((2, 2, 2), "c8"),
    ):
        with pytest.raises(UnsuitableValues, match="values of"):
            COMPRESSORS["zstd"].compress(values)


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if "jpeg" in name])
def test_images_are_of_at_most_16_bits_of_integers(name: str) -> None:
    with pytest.raises(UnsuitableValues, match=rf"{name} takes integers, not float32: .* use putt or zfp"):
        COMPRESSORS[name].compress(scan("float32"), **finest(name, scan()))
    wide = scan("int32")
    wide[0, 0, 0] = 70_000
    with pytest.raises(
        UnsuitableValues, match=r"16 bits, these run from -1,\d+ to 70,000, 17 bits: use putt"
    ):
        COMPRESSORS[name].compress(wide)
    full = np.random.default_rng(0).integers(-32768, 32768, SHAPE).astype(np.int16)
    full[0, 0, :2] = -32768, 32767
    told = decompress(COMPRESSORS[name].compress(full, **finest(name, full)))
    assert np.abs(told.astype(int) - full).max() <= (0 if COMPRESSORS[name].lossless else 600)


@pytest.mark.parametrize("name", ["tt_svd", "tucker", "zfp"])
def test_gaps_are_refused_by_what_cannot_keep_them(name: str) -> None:
    gap = scan("float32")
    gap[1, 2, 3:5] = np.nan, np.inf
    with pytest.raises(UnsuitableValues, match=f"{name} takes finite values, 2 of 4,370 voxels are not"):
        COMPRESSORS[name].compress(gap, **finest(name, gap))


def test_zfp_keeps_its_tolerance() -> None:
    for dtype in ("int32", "float32", "float64"):
        values = scan(dtype, (6, 9, 11))
        for tolerance in (0.7, 5.0, 33.3):
            told = decompress(COMPRESSORS["zfp"].compress(values, tolerance=tolerance))
            assert np.abs(told - values.astype(float)).max() <= tolerance + (
                0.5 if dtype == "int32" else 1e-3
            )


def test_trains_and_tucker_tensors_keep_their_tolerance() -> None:
    values = scan("float32", (2, 20, 32, 17))
    for name in ("tt_svd", "tucker"):
        for tolerance in (30.0, 200.0):
            told = decompress(COMPRESSORS[name].compress(values, tolerance=tolerance))
            assert tolerance / 4 < np.sqrt(np.square(told - values.astype(float)).mean()) <= tolerance


@pytest.mark.parametrize("name", ["tt_svd", "tucker"])
def test_factors_are_no_larger_than_a_float32(name: str) -> None:
    largest = float(np.finfo(np.float32).max)
    for share in (0.9, 1 / 400):
        values = np.full((8, 8, 8), -share * largest, np.float32)
        values[::2] *= 0.5
        with pytest.raises(UnsuitableValues, match=f"{name} takes values up to 6.65e.35, these run up to"):
            COMPRESSORS[name].compress(values, tolerance=1e30)
    values = (scan("float64") / 2500 * largest / 600).astype(np.float32)
    told = decompress(COMPRESSORS[name].compress(values, tolerance=1e-4 * largest / 600))
    assert np.abs(told.astype(float) - values).max() < 1e-2 * largest / 600
    assert decompress(COMPRESSORS[name].compress(values, tolerance=1e200)).shape == values.shape


def test_a_range_that_no_setting_can_be_told_of_is_refused() -> None:
    values = scan("float64") / 3000 * 1e308
    values[0, 0, :2] = -1.5e308, 1.5e308
    for name in ("putt", "tt_svd", "zfp"):
        with pytest.raises(
            UnsuitableValues, match="values over a range of inf: scale them, or use a lossless"
        ):
            COMPRESSORS[name].compress(values, step=1.0)


def test_a_peer_that_is_not_installed_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    for name in ("zfp", "tucker", "jpegxl_lossless"):
        with pytest.raises(MissingPeer, match=rf"{name} needs .* pip install 'tomotrain\[peers\]'"):
            COMPRESSORS[name].compress(scan(), **finest(name, scan()))


@pytest.mark.parametrize("name", ANY_DTYPE)
def test_gaps_and_foreign_byte_orders_are_kept(name: str) -> None:
    gap = scan("float32", (3, 70, 5))
    gap[1, 2, 3], gap[0, 0, 0] = np.nan, np.inf
    told = decompress(COMPRESSORS[name].compress(gap, **finest(name, gap)))
    assert np.array_equal(np.isnan(told), np.isnan(gap))
    assert np.isinf(told[0, 0, 0])
    foreign = scan("int16").astype(">i2")[:, ::2]
    told = decompress(COMPRESSORS[name].compress(foreign, **finest(name, foreign)))
    assert np.abs(told.astype(int) - foreign).max() <= (0 if COMPRESSORS[name].lossless else 1)
    told[:] = 0


def test_blocks_at_the_far_faces_are_cut() -> None:
    values = scan("int16", (2, 33, 9, 17))
    data = Putt(side=16).compress(values, step=30.0)
    assert np.array_equal(Putt().decompress(data), Putt(side=16).decompress(data))
    alone = Putt().decompress(Putt().compress(values[1:, 16:32, :, 16:], step=30.0))
    assert np.array_equal(decompress(data)[1:, 16:32, :, 16:], alone)


def test_parts_fill_their_payload() -> None:
    parts = [b"", b"a" * 300, b"bc"]
    assert apart(together(parts)) == parts
    for payload in (together(parts)[:-1], together(parts) + b"x", b"\x80", b""):
        with pytest.raises(ValueError, match=r"do not fill|without an end"):
            apart(payload)


# Bounds


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("delta", [0, 1, 2, 4, 8])
def test_the_bound_holds_on_every_voxel(dtype: str, delta: int) -> None:
    limits = np.iinfo(dtype)
    edges = scan(dtype, (3, 9, 8))
    edges[0, :2, 0], edges[1, :2, 0] = limits.min, limits.max
    for values in (edges, scan(dtype, (2, 1, 5, 3)), edges[:1, :1, :1]):
        told = decompress(BOUNDED.compress(values, delta=delta))
        assert told.dtype == values.dtype
        assert np.abs(told.astype(np.int64) - values.astype(np.int64)).max() <= delta


@pytest.mark.parametrize("delta", [0, 2, 8])
def test_a_bounded_file_is_no_larger_than_the_best_plain_one(delta: int) -> None:
    values = scan("int16", (6, 24, 24))
    k = quantised(values, delta)
    plain = [len(COMPRESSORS[name].compress(k)) for name in LOSSLESS]
    assert np.abs(k.astype(int) * (2 * delta + 1) - values).max() <= delta
    assert len(BOUNDED.compress(values, delta=delta)) <= 1.01 * min(plain)


def test_blocks_choose_trains_where_these_predict_well() -> None:
    rng = np.random.default_rng(0)
    woven = np.round(900 * np.kron(rng.normal(size=(4, 8, 8)), rng.normal(size=(4, 4, 4)))).astype(np.int16)
    noise = rng.integers(-9999, 9999, woven.shape).astype(np.int16)
    for values, first in ((woven, True), (noise, False)):
        block = _block(values, 3)
        assert (block[0] >= TRAIN) == first
        assert np.abs(_values(block, values.shape, values.dtype, 3).astype(int) - values).max() <= 3
    both = np.concatenate([woven, noise])
    data = Bounded(side=16).compress(both, delta=3)
    assert np.abs(decompress(data).astype(int) - both).max() <= 3
    plain = min(len(COMPRESSORS[name].compress(quantised(both, 3))) for name in LOSSLESS)
    assert len(data) < 0.97 * plain


def test_without_peers_a_bound_is_kept_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    values = scan("int16", (3, 9, 8))
    assert np.abs(decompress(BOUNDED.compress(values, delta=3)).astype(int) - values).max() == 3


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(UnsuitableValues, match="bounded takes integers, not float32: zfp bounds"):
        BOUNDED.compress(scan("float32"), delta=1)
    with pytest.raises(UnsuitableValues, match="bounded takes values of 53 bits"):
        BOUNDED.compress(np.full((1, 1, 2), 2**60), delta=1)
    for delta in (-1, float("nan"), 2.0**40):
        with pytest.raises(ValueError, match="must be"):
            BOUNDED.compress(scan(), delta=delta)
    with pytest.raises(ValueError, match="bounded is set by delta"):
        BOUNDED.compress(scan(), step=0)


# Reports


def test_a_report_says_what_its_formulas_say() -> None:
    values = np.array([[[0, 10], [20, 100]]], np.int16)
    told = np.array([[[0, 13], [16, 100]]], np.int16)
    report = reported(values, told, 4)
    assert (report.ratio, report.peak, report.max_error) == (2.0, 100.0, 4.0)
    assert report.psnr == pytest.approx(10 * np.log10(100**2 / (25 / 4)))
    assert reported(values, told, 4, peak=200).psnr == pytest.approx(report.psnr + 20 * np.log10(2))
    same = reported(values, values, 4)
    assert (same.psnr, same.max_error, same.ssim) == (float("inf"), 0.0, 1.0)
    gap = np.array([[[np.nan, 1.0]]])
    assert reported(gap, gap, 1, with_ssim=False).max_error == 0
    assert reported(gap, np.zeros_like(gap), 1, with_ssim=False).max_error == np.inf
    with pytest.raises(ValueError, match=r"int16\(1, 2, 2\) came back as float64\(1, 2, 2\)"):
        reported(values, values.astype(float), 4)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-20, 1e160, 1e300])
def test_values_of_any_size_are_told_by_the_same_quality(scale: float) -> None:
    values = scan("float64")
    told = values + np.random.default_rng(1).normal(0, 30, values.shape)
    plain, scaled = reported(values, told, 4), reported(scale * values, scale * told, 4)
    assert 25 < plain.psnr < 45
    assert scaled.psnr == pytest.approx(plain.psnr, abs=1e-6)
    assert scaled.ssim == pytest.approx(plain.ssim, abs=1e-6)
    assert reported(scale * values, scale * values, 4).psnr == np.inf


def test_similarity_is_that_of_its_windows() -> None:
    values = scan("uint8", (2, 11, 11))
    told = scan("uint8", (2, 11, 11), seed=1)
    peak = 255.0
    gauss = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    each = []
    for x, y in zip(values.astype(float), told.astype(float), strict=True):
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        each.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(values, told, peak) == pytest.approx(np.mean(each), rel=1e-9)
    wide = scan("uint8", (1, 40, 30))
    blurred = (wide // 16 * 16).astype(np.uint8)
    assert ssim(wide, wide, peak) == 1
    assert 0 < ssim(wide, blurred, peak) < 0.999
