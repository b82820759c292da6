"""What `putt_tiles` measures: steps for ratios, bytes of the same integers, and its keys."""

from __future__ import annotations

import lzma

import numpy as np
import pytest

from benchmarks import putt_rate, putt_tiles
from benchmarks.real_scans import RealScan
from storage.putt.coder import encoded
from storage.putt.integer_train import IntegerTrain


def ball(side=16, noise=15.0):
    axes = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    values = 2000 / (1 + np.exp(9 * (sum(axis**2 for axis in axes) - 0.5))) - 1000
    return (values + np.random.default_rng(0).normal(0, noise, values.shape)).round().astype(np.int16)


@pytest.mark.parametrize("ratio", [5, 15])
def test_a_step_gives_its_ratio(ratio) -> None:
    tile = ball(32)
    step = putt_tiles.step_for([tile], ratio)
    assert tile.nbytes / len(encoded(putt_tiles.train_of(tile, step))) == pytest.approx(ratio, rel=0.1)


def test_lzma_takes_the_same_integers_in_bytes_that_hold_them() -> None:
    small = IntegerTrain((np.full((1, 8, 1), 7),), 1.0, 0.0)
    large = IntegerTrain((np.full((1, 8, 1), 700),), 1.0, 0.0)
    for trains, width in (([small, small], "i1"), ([small, large], "<i2")):
        flat = np.concatenate([train.cores[0].ravel() for train in trains]).astype(width)
        expected = lzma.compress(flat.tobytes(), lzma.FORMAT_RAW, filters=putt_rate.LZMA)
        assert putt_rate.lzma_bytes(trains) == len(expected)


def test_keys_are_those_of_the_worst_scan(monkeypatch, capsys) -> None:
    tiles = {"even": ball(16, 5.0), "rough": ball(16, 60.0)}
    monkeypatch.setattr(putt_tiles, "SCANS", {name: RealScan(name, "CT", (16, 16, 16)) for name in tiles})
    monkeypatch.setattr(putt_tiles, "SIDE", 16)
    monkeypatch.setattr(putt_tiles, "RATIOS", (20,))
    monkeypatch.setattr(putt_tiles, "quantised_over_float32", lambda tile: 0.1)
    monkeypatch.setattr(putt_tiles, "missing", lambda: None)
    monkeypatch.setattr(putt_tiles, "values_of", lambda scan: tiles[scan.path])
    result = putt_tiles.run()
    rows = [scan["ratios"]["20"] for scan in result["scans"].values()]
    for key in ("coder_over_lzma", "encode_ms", "decode_ms"):
        assert result[key] == max(row[key] for row in rows) > 0
    assert {target["key"] for target in result["targets"]} == {each.key for each in putt_tiles.TARGETS}
    putt_tiles.show(result)
    assert "rough: 1 tiles of 16 x 16 x 16, int16" in capsys.readouterr().out
    assert list(putt_tiles.run(["even"])["scans"]) == ["even"]
    with pytest.raises(SystemExit, match="no scan odd"):
        putt_tiles.run(["odd"])
