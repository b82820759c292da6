"""What `putt_rate` and `putt_bound` measure: curves by their files, keys by their counts, and tables."""

from __future__ import annotations

import importlib.util
from math import inf

import numpy as np
import pytest

from benchmarks import putt_bound, putt_rate, real_scans
from benchmarks.putt_rate import Point, curve, exact, psnr_at, ratio_at, share_for
from benchmarks.results import tables, words
from benchmarks.results.asked import asked
from benchmarks.results.document import document
from benchmarks.results.runs import Run, Runs
from storage.compressors import COMPRESSORS
from storage.compressors.auto import Auto
from storage.compressors.base import Framed
from storage.putt.digits import Digits

POINTS = [Point(0.2, 4.0, 50.0, 2.0, 1.0), Point(0.4, 16.0, 40.0, 2.0, 1.0), Point(0.6, 64.0, 20.0, 2.0, 1.0)]


def ball(shape=(12, 40, 36), noise=4.0):
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    values = 2000 / (1 + np.exp(9 * (sum(axis**2 for axis in axes) - 0.5))) - 1000
    return (values + np.random.default_rng(0).normal(0, noise, shape)).round().astype(np.int16)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Compressors that take no time."""
    known = {name: COMPRESSORS[name] for name in ("putt", "wavelet", "zfp", "blosc")}
    monkeypatch.setattr(putt_rate, "COMPRESSORS", known)
    monkeypatch.setattr(putt_rate, "AUTO", Auto(tuple(known.values())))


def test_curves_are_read_between_their_files() -> None:
    assert psnr_at(POINTS, 8) == pytest.approx(45)
    assert ratio_at(POINTS, 45) == pytest.approx(8)
    assert ratio_at(POINTS, 20.0) == 64
    assert (psnr_at(POINTS, 100), psnr_at(POINTS, 2)) == (None, None)
    assert psnr_at(POINTS, 65) == 20
    assert ratio_at(POINTS, 60) == 0
    assert share_for(POINTS, 32) == pytest.approx(0.5)
    assert share_for(POINTS, 128) == pytest.approx(0.7)
    assert share_for(POINTS, 2) == pytest.approx(0.1)
    assert share_for(POINTS[:1], 8) == pytest.approx(0.2 + np.log(2) / putt_rate.STEEP)
    lossless = [Point(0.0, 3.0, inf, 1.0, 1.0)]
    assert exact(lossless) == lossless[0]
    assert (exact(POINTS), psnr_at(lossless, 3), ratio_at(lossless, 99)) == (None, None, 3.0)


def test_a_curve_passes_near_every_ratio_that_can_be_had() -> None:
    points = curve(COMPRESSORS["zfp"], ball())
    for ratio in putt_rate.RATIOS[:3]:
        assert min(abs(np.log(one.ratio / ratio)) for one in points) < putt_rate.NEAR
    assert len(points) <= 1 + putt_rate.TRIALS * len(putt_rate.RATIOS)
    assert [one.ratio for one in points] == sorted(one.ratio for one in points)
    assert curve(COMPRESSORS["jpeg2000"], ball().astype(np.float32)) == []
    assert [one.psnr for one in curve(COMPRESSORS["blosc"], ball())] == [inf]


def test_a_scan_is_told_with_all_keys(capsys) -> None:
    row = putt_rate.measured(ball())
    assert set(row["lossless"]) >= {"blosc"}
    assert row["compressors"]["putt"]["psnr_at"]["5"] > row["compressors"]["putt"]["psnr_at"]["20"] > 20
    assert 0 < row["coder_over_lzma"] < 2
    assert 0.9 < row["auto_over_best"] <= 1.01
    assert row["auto"]["chose"] == row["auto"]["best"]
    told = {"scans": {"ball": {"modality": "CT", **row}}, "ratios": list(putt_rate.RATIOS), "targets": []}
    putt_rate.show(told)
    assert f"auto_over_best {row['auto_over_best']:.3g}" in capsys.readouterr().out
    assert f"| ball | putt | {row['compressors']['putt']['psnr_at']['5']:.2f} |" in tables.rates(told)
    shares = tables.shares(told["scans"], ["auto_over_best"])
    assert row["auto"]["chose"] in shares
    assert "| ball | 12 x 40 x 36, int16 |" in shares


def test_float32_cores_are_counted_as_they_are() -> None:
    rng = np.random.default_rng(0)
    block = np.kron(rng.normal(0, 300, (2, 2, 2)), rng.normal(0, 1, (8, 8, 8))) + rng.normal(0, 1, (16,) * 3)
    share = putt_rate.quantised_over_float32(block)
    assert Digits.of(block.shape).modes == (8, 8, 8, 8)
    assert 0.02 < share < 0.5


def test_series_are_compared_at_one_quality() -> None:
    still = np.stack([ball((4, 24, 24), 0.0)] * 4)
    values = still + np.random.default_rng(1).normal(0, 3, still.shape).round().astype(np.int16)
    curves = {name: curve(one, values) for name, one in putt_rate.compressors(values) if name != "zfp"}
    told = putt_rate.over_time(values, curves)
    assert told["temporal_over_frames"] == told["over_time"]["wavelet"]["over_frames"]
    for row in told["over_time"].values():
        assert row["over_frames"] == pytest.approx(row["ratios"][1] / row["ratios"][0])
        assert row["over_frames"] < 0.7


class Off(Framed):
    """Keeps values, but for one that is too far away."""

    name = "zstd"

    def setting(self, values):
        return None

    def packed(self, values, number):
        far = values.copy()
        far.flat[3] += 5
        return COMPRESSORS["zstd"].packed(far, 0.0)

    def unpacked(self, payload, shape, dtype):
        return COMPRESSORS["zstd"].unpacked(payload, shape, dtype)

    def compress(self, values, **setting):
        return super().compress(values)


def test_voxels_beyond_a_bound_are_counted(monkeypatch, capsys) -> None:
    values = ball((5, 20, 18))
    kept = putt_bound.bounded(values, 2)
    assert (kept["beyond"], kept["largest"]) == (0, 2)
    assert kept["bytes"] <= 1.01 * kept["plain_bytes"]
    assert kept["ratio"] == pytest.approx(values.nbytes / kept["bytes"])
    monkeypatch.setattr(putt_bound, "BOUNDED", Off())
    broken = putt_bound.bounded(values, 2)
    assert (broken["beyond"], broken["largest"]) == (1, 5)
    assert putt_bound.bounded(values, 8)["beyond"] == 0
    scans = {"ball": {"shape": [5, 20, 18], "dtype": "int16", "bounds": {"2": kept}}}
    putt_bound.show({"scans": scans, "targets": [], "size_over_best": 1.0})
    assert "  2  " in capsys.readouterr().out
    assert "| 0 | " in tables.bounds(scans)


def test_unknown_scans_and_absent_ones_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(real_scans, "missing", lambda: None)
    with pytest.raises(SystemExit, match="no scan lung: there are chest_ct"):
        putt_rate.run(["lung"])
    assert list(real_scans.chosen(["flair_8bit"])) == ["flair_8bit"]
    monkeypatch.undo()
    monkeypatch.setattr(real_scans, "DATA", tmp_path)
    with pytest.raises(SystemExit, match="not under TOMOTRAIN_DATA"):
        putt_bound.run()


@pytest.mark.skipif(real_scans.missing() is not None, reason="needs ../shared/data")
def test_crops_are_from_the_middle() -> None:
    scan = real_scans.RealScan("nifti/sct_t2_PSR.nii.gz", "MR", (20, 70, 10))
    values, whole = real_scans.values_of(scan), real_scans.whole(scan)
    assert min(whole.shape[0] - 20, whole.shape[2] - 10) > 0
    assert values.shape == (20, whole.shape[1], 10)
    start = (whole.shape[0] - 20) // 2
    assert np.array_equal(values[:, :, 0], whole[start : start + 20, :, (whole.shape[2] - 10) // 2])


@pytest.mark.skipif(real_scans.missing() is not None, reason="needs ../shared/data")
def test_middles_are_of_every_frame() -> None:
    scan = real_scans.RealScan("nifti/sct_fmri_4d.nii.gz", "MR over time", (6, 20, 68))
    values, whole = real_scans.values_of(scan), real_scans.whole(scan)
    assert whole.shape == (30, 6, 68, 68)
    assert np.array_equal(values, whole[:, :, 24:44])


def test_rates_are_of_whole_scans(monkeypatch) -> None:
    monkeypatch.setattr(real_scans, "missing", lambda: None)
    monkeypatch.setattr(putt_rate, "whole", lambda scan: ball() if scan.modality == "CT" else None)
    told = putt_rate.run(["chest_ct"])["scans"]["chest_ct"]
    assert told["shape"] == list(ball().shape)
    assert told["cpu_s"] > sum(row["encode_s"] for row in told["compressors"].values())


def test_documents_have_a_place_for_both() -> None:
    assert {"putt_rate", "putt_bound"} <= set(asked().others)
    text = document(Runs({}, {}), asked(), ())
    assert words.RATES in text
    assert words.BOUNDS in text


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is in the extra bench")
def test_curves_and_bounds_are_drawn(tmp_path) -> None:
    from benchmarks.results import plots

    files = {"putt": {"files": [[4.0, 50.0], [30.0, 40.0]]}, "blosc": {"files": [[2.0, None]]}}
    scan = {"dtype": "int16", "compressors": files, "lossless": {"blosc": 2.0}}
    row = {"ratio": 3.0, "bytes": 100, "plain_bytes": 99}
    runs = {
        "putt_rate": Run({"scans": {"one": scan, "two": scan, "three": scan}}, ""),
        "putt_bound": Run({"scans": {"one": {"bounds": {"0": row, "8": row}}}}, ""),
    }
    assert plots.draw(Runs({}, runs), tmp_path) == {"putt_rate.svg", "putt_bound.svg"}
    drawn = (tmp_path / "putt_rate.svg").read_text()
    assert ">three, int16<" in drawn
    assert ">putt<" in drawn
    assert ">blosc<" not in drawn
