"""Benchmarks of prediction and training at tiny sizes: what they measure, and where they guess."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cpic_predict, cpic_train
from benchmarks.stored_scans import BodyScan, body, make
from models.cpic.fibres import FibreConfig
from models.regressors.cpic import Cpic
from models.regressors.encoders import EncoderConfig, ProjectionConfig
from models.regressors.readouts import FibreReadoutConfig
from models.regressors.resnet import ResNet
from storage.volume import Volume
from workers.scans import Readers

SHAPE = (12, 16, 40)
QTT, TT = (FibreConfig(layout=layout, rank=2) for layout in ("qtt", "tt"))
ENCODER = EncoderConfig(hidden=(2,), features=2)


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, and a narrow dense network of ten layers."""
    readouts = (FibreReadoutConfig(fibres, counts=(2,), poolings=(1,)) for fibres in (QTT, TT))
    small = [Cpic(encoder=ENCODER, starts=1, steps=0, readout=readout) for readout in readouts]
    monkeypatch.setattr(cpic_predict, "RECIPES", dict(zip(("cpic", "cpic_tt"), small, strict=True)))
    monkeypatch.setattr(cpic_predict, "SMALL", (8, 8, 8))
    monkeypatch.setattr(cpic_predict, "ANCHORS", {"cpic": 5, "cpic_tt": 4})
    training = Cpic(encoder=ENCODER, voxels=20, projection=ProjectionConfig(count=2, fibres=QTT))
    paper = Cpic(encoder=ENCODER, perceptron=True, projection=training.projection)
    recipes = {"pooled": training, "projected": training, "paper": paper}
    monkeypatch.setattr(cpic_train, "RECIPES", recipes)
    monkeypatch.setattr(cpic_train, "STEPS", 1)
    for module in (cpic_predict, cpic_train):
        monkeypatch.setattr(module, "THREADS", 1)
        monkeypatch.setattr(module, "ResNet", partial(ResNet, width=2, depth=10))


def shown(module, result) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        module.show(result)
    return text.getvalue()


def predicted(cold: float, dense: float | None, *, warm: float = 0.5) -> dict[str, dict[str, object]]:
    """Rows of one size; the dense network's an estimate where it has no time."""
    ours = {"cold_s": cold, "warm_s": warm, "peak_mib": 100.0, "ran": True}
    ran = {"cold_s": dense or 99.0, "peak_mib": 1500.0, "ran": dense is not None}
    looked = {**ours, "cold_s": 2 * cold, "warm_s": 3 * warm}
    return {"cpic": ours, "cpic_tt": ours, "cpic_look": looked, "resnet3d": ran}


def test_a_stored_scan_is_the_one_in_memory_however_it_is_cut(tmp_path: Path) -> None:
    make(tmp_path / "scan", SHAPE, 3)
    volume = Volume.open(tmp_path / "scan")
    assert np.array_equal(volume.array()[...], body(SHAPE, 3))
    assert volume.stored.grid.orientation == "LPS"
    cut = np.concatenate([slab.voxels for slab in BodyScan(SHAPE, 3).slabs(5)])
    assert np.array_equal(cut, body(SHAPE, 3))
    assert np.abs(cut.astype(float) - body(SHAPE, 4)).mean() > 10


def test_predictions_are_measured_from_a_closed_volume(tmp_path: Path, narrow: None) -> None:
    cpic_predict.make_subjects(tmp_path / "a", SHAPE)
    rows = {way: cpic_predict.child(way, tmp_path / "a") for way in ("cpic", "cpic_tt", "resnet3d")}
    for way in ("cpic", "cpic_tt"):
        row = rows[way]
        assert 0 < row["cold_s"] < 10
        assert row["chunks"] == 2
        assert 0 < row["share_read"] <= 1
        assert row["share_read"] == row["voxels_read"] / np.prod(SHAPE)
        assert row["peak_mib"] < row["peak_rss_mib"]
    assert rows["cpic"]["cubes"] != rows["cpic_tt"]["cubes"]
    looked = cpic_predict.child("cpic_look", tmp_path / "a")
    assert looked["answer"] == rows["cpic"]["answer"]
    assert looked["voxels_read"] > rows["cpic"]["voxels_read"]  # the certificate's
    answers = [row["answer"] for row in rows.values()]
    assert len(set(answers)) == 3
    assert [cpic_predict.child(way, tmp_path / "a")["answer"] for way in rows] == answers


def test_ratios_are_of_what_ran_and_guesses_stand_in_brackets() -> None:
    sizes = [predicted(1.0, 8.0), predicted(2.0, 10.0), predicted(1.5, 30.0), predicted(2.2, None, warm=0.7)]
    result = cpic_predict.summary(dict(zip(cpic_predict.SHAPES, sizes, strict=True)))
    assert result["speedup_vs_resnet_256"] == 5
    assert result["look_speedup_vs_resnet_256"] == 2.5
    assert (result["look_cold_s_256"], result["look_warm_s_256"]) == (4, 1.5)
    assert result["memory_ratio_vs_resnet_256"] == 15
    assert result["growth_cold_512"] == 1.1
    assert result["growth_warm_512"] == 1.4
    assert result["growth_cold_64x1024x1024"] == 1.5
    assert not [key for key in result if key.endswith("resnet_512")]
    holds = {target["key"]: target["holds"] for target in result["targets"]}
    assert holds["growth_cold_512"]
    assert not holds["growth_warm_512"]
    assert not holds["look_cold_s_256"]
    assert "speedup_vs_resnet_512" not in holds
    assert "(99)" in shown(cpic_predict, result)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "mib", "runs"), [(2.0, 10.0, 3), (4.0, 10.0, 1), (16.0, 10.0, 0), (2.0, 1e6, 0)]
)
def test_the_dense_network_runs_where_it_is_expected_to_fit(
    seconds: float, mib: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpic_predict, "measure", lambda way, folder: {"cold_s": 1.0, "peak_mib": 5.0})
    before = {"32x512x512": {"resnet3d": {"cold_s": seconds, "peak_mib": mib, "ran": True}}}
    row = cpic_predict.dense_row(Path(), (64, 1024, 1024), before)
    assert (row["runs"], row["ran"]) == (runs, runs > 0)
    assert row["cold_s"] == (1.0 if runs else 8 * seconds)


def test_each_kind_of_step_descends(tmp_path: Path, narrow: None) -> None:
    for number in range(4):
        make(tmp_path / str(number), (12, 16, 16), number)
    with Readers(1 << 20, "threads") as readers:
        scans = cpic_train.stored_scans(tmp_path, 4, readers)
        recipe, cohort = cpic_train.RECIPES["pooled"], cpic_train.cohort_of(scans)
        for make_learner in (cpic_train.pooled, cpic_train.projected):
            learner = make_learner(recipe, cohort)
            before = [weight.detach().clone() for weight in learner.weights.parameters()]
            (row,) = cpic_train.timed_steps(learner, scans, 1)
            moved = zip(before, learner.weights.parameters(), strict=True)
            assert any(not torch.equal(was, now) for was, now in moved)
            assert 0 < row["read_s"] < row["step_s"]


def test_a_batch_is_measured_in_every_way(tmp_path: Path, narrow: None) -> None:
    for number in range(3):
        make(tmp_path / "40" / str(number), (40, 40, 40), number)
    rows = {way: cpic_train.child(way, tmp_path / "40", 3) for way in (*cpic_train.RECIPES, "resnet3d")}
    assert all(row["s_per_scan"] == row["step_s"] / 3 for row in rows.values())
    assert [way for way, row in rows.items() if "anchors_s" in row] == ["projected", "paper"]
    result = cpic_train.summary({"40": rows})
    dense, ours = rows["resnet3d"]["s_per_scan"], rows["pooled"]["s_per_scan"]
    assert result["pooled_speedup_vs_resnet_40"] == round(dense / ours, 1)
    assert result["paper_paper_ratio_40"] == round(17.5 / rows["paper"]["s_per_scan"], 1)
    assert "resnet3d" in shown(cpic_train, result)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "mib", "batch", "larger"),
    [
        (1.0, 100.0, 20, 7),
        (5.0, 100.0, 11, 1),
        (1.0, 1000.0, 10, 1),
        (50.0, 100.0, 1, 0),
        (1.0, 9000.0, 1, 0),
    ],
)
def test_the_dense_batch_is_as_large_as_time_and_memory_allow(
    seconds: float, mib: float, batch: int, larger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpic_train, "MOST_MIB", 10_900)
    monkeypatch.setattr(cpic_train, "free_mib", lambda: 1e6)

    def measured(way: str, folder: Path, batch: int) -> dict[str, object]:
        scans = batch * (int(folder.name) / 128) ** 3
        return {"step_s": 3 + seconds * scans, "peak_mib": 900 + mib * scans, "batch": batch, "ran": True}

    monkeypatch.setattr(cpic_train, "measure", measured)
    row = cpic_train.dense_row(Path("128"), 20, {})
    assert row["batch"] == batch
    after = cpic_train.dense_row(Path("256"), 20, {"128": {"resnet3d": row}})
    assert after["ran"] == (larger > 0)
    assert after["batch"] == max(1, larger)
    assert after["step_s"] == pytest.approx(3 + 8 * seconds * after["batch"])
    assert after["peak_mib"] == pytest.approx(900 + 8 * mib * after["batch"])
