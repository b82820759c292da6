"""What `putt_predict` counts: nothing where nothing was compressed, something where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import putt_predict
from benchmarks.putt_predict import Held, Small, change, distance, of_cohort, of_volume, r2, squeezed, stored
from benchmarks.stored_scans import body
from models.cpic.embed import EmbedConfig
from models.regressors.cpic import Cpic
from models.tt.train import TensorTrain


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("RATIOS", (20,)),
        ("SIZE", 16),
        ("TRAIN", (6, 2)),
        ("ASKED", (2, 4)),
        ("RECIPE", Cpic(steps=1, starts=1)),
        ("EMBED", EmbedConfig(rank=3, n_dim=2)),
        ("VOXELS", 50),
    ):
        monkeypatch.setattr(putt_predict, name, value)


@pytest.fixture
def uncompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(putt_predict, "squeezed", lambda source, ratio, folder: Small(source, 1.0, 99.0))


@pytest.mark.slow
@pytest.mark.usefixtures("small", "uncompressed")
def test_without_compression_no_answer_changes(tmp_path: Path) -> None:
    told = of_cohort(tmp_path / "cohort")["rows"]
    original, row = told["original"], told["20"]
    for key in ("feature_change", "centred_change", "answer_change"):
        assert row[key] == 0
    assert [row[key] for key in ("r2", "bytes")] == [original[key] for key in ("r2", "bytes")]


@pytest.mark.usefixtures("small", "uncompressed")
def test_without_compression_no_train_changes(tmp_path: Path) -> None:
    told = of_volume(stored(Held(body((20, 24, 22), 0)), tmp_path / "scan"), tmp_path)["rows"]
    original, row = told["original"], told["20"]
    assert row["feature_change"] == row["centred_change"] == 0
    assert max(row["train_change"], row["chosen_change"]) < 1e-6 < original["seed_change"]
    assert row["bytes"] == original["bytes"]


@pytest.mark.usefixtures("small")
def test_a_compressed_scan_is_smaller_and_moves_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stored(Held(body((20, 24, 22), 0)), tmp_path / "scan")
    made = squeezed(source, 20, tmp_path / "made")
    assert 20 <= made.ratio < 24
    assert made.volume.stored.derived is not None
    told = of_volume(source, tmp_path)
    row = told["rows"]["20"]
    assert row["bytes"] < told["rows"]["original"]["bytes"] / 5
    assert 0 < row["feature_change"] < row["centred_change"]
    assert row["train_change"] > 0
    putt_predict.show({"scans": {"scan": told}})
    assert "train_change" in capsys.readouterr().out


def test_changes_are_measured_in_deviations_and_norms() -> None:
    before = np.array([1.0, 3.0])
    assert change(before + 2, before) == pytest.approx(2.0)
    assert r2(before, before) == 1
    assert r2(np.full(2, 2.0), before) == 0
    train = TensorTrain((torch.ones(1, 2, 1, dtype=torch.float64), torch.ones(1, 3, 1, dtype=torch.float64)))
    other = TensorTrain((train.cores[0] * 1.5, train.cores[1]))
    assert distance(other, train) == pytest.approx(0.5)


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(SystemExit, match="no case rates: there are spread, stroke_T1"):
        putt_predict.run(["rates"])
