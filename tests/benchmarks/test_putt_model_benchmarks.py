"""putt_fit and putt_restore at tiny sizes: what they compare is what they say, and errors are of the gaps."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import putt_fit, putt_restore, scan_cubes
from benchmarks.real_scans import missing
from models.putt.descent import Schedule
from models.putt.morton import to_morton

TINY = Schedule(start=4, upsample_at=(10, 20), steps=40, rate=0.008, warm_up=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """A cube of 16^3 in the place of every scan, and a schedule for it."""
    cube = waves(16)
    for module in (putt_fit, putt_restore):
        monkeypatch.setattr(module, "scan_cube", lambda name, side: cube)
        monkeypatch.setattr(module.Schedule, "paper", classmethod(lambda cls, side: TINY))
        monkeypatch.setattr(module, "SEEDS", (0, 1))
        monkeypatch.setattr(module, "LONG", 2)
    monkeypatch.setattr(putt_fit, "LONG_RANK", 6)
    monkeypatch.setattr(putt_restore, "SIGMAS", (0.1, 0.2))
    monkeypatch.setattr(putt_restore, "KEPT", {"10 % kept": 0.1})
    monkeypatch.setattr(putt_restore, "WIDTHS", [0.4, 0.8, 1.2])
    monkeypatch.setattr(putt_restore, "BLOCKS", {"blocks of 4": (4, 6)})
    return cube


def waves(side: int) -> torch.Tensor:
    x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    values = torch.sin(3 * z + 2 * y) * torch.cos(4 * x - y) + 0.5 * ((z + y + x) > 1.7)
    return (values - values.min()) / (values.max() - values.min())


def shown(module: ModuleType, result: dict[str, Any]) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        module.show(result)
    return text.getvalue()


def test_a_fit_is_below_its_bound_and_the_worst_is_what_is_judged(
    tiny: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(putt_fit, "CASES", (putt_fit.Case("stroke_t1", 64, (3, 6)),))
    result = putt_fit.run()
    table = result["cases"]["stroke_t1-64"]
    behind = []
    for rank in ("3", "6"):
        train = table[rank]
        assert train["numbers"] == 2 * 8 * int(rank) * (1 + int(rank))
        for row in train["rows"].values():
            assert row["worst"] <= row["psnr"] <= train["bound"] + 1e-6
        assert train["rows"]["als"]["psnr"] >= train["rows"]["tt_svd"]["psnr"]
        assert train["rows"]["coarse_to_fine"]["psnr"] > train["rows"]["direct"]["psnr"]
        behind.append(train["bound"] - train["rows"]["coarse_to_fine"]["worst"])
    assert result["coarse_to_fine_behind_bound"] == max(behind)
    assert ("direct_8x" in table["6"]["rows"], "direct_8x" in table["3"]["rows"]) == (True, False)
    seconds = table["6"]["rows"]["direct"]["cpu_s"]
    assert result["step_ms_64_rank_6"] == pytest.approx(1000 * seconds / 40)
    assert [each["key"] for each in result["targets"]] == [
        "als_behind_bound",
        "coarse_to_fine_behind_bound",
    ]
    assert "stroke_t1-64, rank 6: 672 numbers" in shown(putt_fit, result)


def test_the_bound_is_the_unfoldings_own(tiny: torch.Tensor) -> None:
    train, tensor = putt_fit.of_rank(tiny, 6), to_morton(tiny)
    tails = [
        float(torch.linalg.svdvals(tensor.reshape(8**bond, -1))[6:].square().sum()) for bond in (1, 2, 3)
    ]
    assert train["bound"] == pytest.approx(-10 * math.log10(max(tails) / 16**3))


def test_unknown_cases_are_named() -> None:
    with pytest.raises(SystemExit, match="no case brain-64: there are stroke_t1-64"):
        putt_fit.run(["brain-64"])
    with pytest.raises(SystemExit, match="no scan brain: there are stroke_t1"):
        putt_restore.run(["brain"])


def test_noise_and_gaps_are_restored_and_compared_as_is_said(tiny: torch.Tensor) -> None:
    result = putt_restore.run(["stroke_t1"])
    tables = result["scans"]["stroke_t1"]
    assert list(tables) == ["noise 0.1", "noise 0.2", "10 % kept", "blocks of 4"]
    noise, gaps = tables["noise 0.1"], tables["10 % kept"]
    assert noise["noisy"]["psnr"] == pytest.approx(20, abs=0.3)
    assert noise["gaussian, oracle"]["psnr"] > noise["noisy"]["psnr"] + 2
    assert noise["shifts"]["psnr"] > noise["noisy"]["psnr"] + 2
    assert ("non-local means" in noise) == ("non-local means" not in result["skipped"])
    if "non-local means" in noise:
        assert noise["non-local means"]["psnr"] > noise["noisy"]["psnr"] + 2
    for key, table in (("noise_gain", noise), ("gaps_gain", gaps)):
        assert result[key] == table["coarse to fine, 0.008"]["psnr"] - table["direct, 0.008"]["psnr"]
        ours, direct, long = (
            max(table[f"{way}, {rate}"]["psnr"] for rate in ("0.008", "0.03"))
            for way in ("coarse to fine", "direct", "direct 8x")
        )
        assert (result[f"{key}_own_rates"], result[f"{key}_8x"]) == (ours - direct, ours - long)
    assert noise["coarse to fine, 0.008, rank 40"]["psnr"] != noise["coarse to fine, 0.008"]["psnr"]
    assert noise["direct 8x, 0.008"]["seeds"] == 1
    assert "direct 8x, 0.008" not in tables["noise 0.2"]
    assert result["fill_minus_train"] == max(
        table["pyramid"]["psnr"] - table["complete, train"]["psnr"]
        for name, table in tables.items()
        if "noise" not in name
    )
    assert "stroke_t1, blocks of 4" in shown(putt_restore, result)


def test_what_was_observed_does_not_count() -> None:
    truth = torch.zeros(4, 4, 4, dtype=torch.float64)
    found = truth.clone()
    found[0], found[1] = 5.0, 0.1
    where = torch.zeros(4, 4, 4, dtype=torch.bool)
    where[1] = True
    assert putt_restore.timed(lambda: found, truth, where)["psnr"] == pytest.approx(20)


@pytest.mark.parametrize(("name", "missing_share"), [("1 % kept", 0.99), ("blocks of 16", 0.09)])
def test_masks_are_drawn_from_the_seed(name: str, missing_share: float) -> None:
    mask = putt_restore.observed(name, 64, 1)
    assert 1 - float(mask.double().mean()) == pytest.approx(missing_share, abs=0.02)
    assert torch.equal(mask, putt_restore.observed(name, 64, 1))
    assert not torch.equal(mask, putt_restore.observed(name, 64, 2))


@pytest.mark.skipif(missing() is not None, reason="needs ../shared/data")
def test_cubes_are_the_middle_of_scans_from_0_to_1() -> None:
    small, large = (scan_cubes.scan_cube("head_ct", side) for side in (32, 64))
    assert small.shape == (32, 32, 32)
    assert (float(large.min()), float(large.max())) == (0, 1)
    middle = large[16:48, 16:48, 16:48]
    assert torch.allclose((middle - middle.min()) / (middle.max() - middle.min()), small, atol=1e-12)
    assert torch.equal(large[0], large[2])
    assert not torch.equal(large[2], large[5])
