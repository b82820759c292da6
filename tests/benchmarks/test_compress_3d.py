"""The benchmark of compressed 3-D networks at tiny sizes: what it measures, counts and asks."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from benchmarks import compress_3d, compress_3d_plan
from benchmarks.cohorts.made import Kept
from benchmarks.compress_3d_plan import DECAYING, FLAT, Alone, Asked, falling, planned_here
from benchmarks.kernel_peers import at_parameters, parameters
from benchmarks.tltorch_peers import missing, tltorch_peers
from models.compression.budgets import BudgetConfig
from models.learning.cohort import Cohort, Inputs
from models.regressors.resnet import ResNet
from models.training import TrainingConfig

WIDTH, DEPTH = 1, 10


def cohort(first: int, count: int) -> Cohort:
    """Volumes with a target that their mean tells."""
    draw = np.random.default_rng(first)
    targets = draw.normal(size=count)
    steps = [np.rint(100 * (target + draw.normal(size=(16,) * 3))).astype(np.int16) for target in targets]
    scans = tuple(map(Kept, steps))
    return Cohort(Inputs.of(scans), tuple(f"{first + n}" for n in range(count)), targets)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small volumes, a narrow network, one repetition."""
    monkeypatch.setattr(compress_3d, "cohorts", lambda: (cohort(0, 4), cohort(100, 3)))
    monkeypatch.setattr(compress_3d, "WIDTH", WIDTH)
    monkeypatch.setattr(compress_3d, "DEPTH", DEPTH)
    monkeypatch.setattr(compress_3d, "TRAINING", TrainingConfig(epochs=1, batch=4, rate=1e-3))
    monkeypatch.setattr(compress_3d, "CURVE", (2.0,))
    monkeypatch.setattr(compress_3d, "SEEDS", (0,))
    monkeypatch.setattr(compress_3d, "REPEATS", 1)


@pytest.mark.usefixtures("tiny")
def test_every_way_is_judged_and_every_factorised_layer_is_counted() -> None:
    result = compress_3d.run(["cohort"])
    (first,) = result["seeds"]
    others = {"rings by answers 2", "kernels 2", "svd 2", "svdp 2"} | (
        set() if missing() else set(tltorch_peers())
    )
    assert set(first["ways"]) == {"answers 2", *others}
    assert result["pcr"] == min(seed["ways"]["answers 2"]["pcr"] for seed in result["seeds"]) >= 2.0
    ratios = [seed["ways"]["answers 2"]["rmse_tuned"] / seed["rmse"] for seed in result["seeds"]]
    assert result["rmse_ratio"] == max(ratios)
    for measure in ("answers", "kernels"):
        told = sum(value for key, value in result.items() if key.startswith(f"wins_{measure}_"))
        assert told == sum(sum(seed["wins"][measure].values()) for seed in result["seeds"]) > 0
    ours = first["ways"]["answers 2"]["pcr"]
    for name, row in first["ways"].items():
        assert (row["pcr"] <= ours) if name.startswith("tltorch") else (row["pcr"] >= 2.0)
    assert [target["key"] for target in result["targets"]] == ["pcr", "rmse_ratio"]
    text = io.StringIO()
    with redirect_stdout(text):
        compress_3d.show(result)
    assert "svdp 2" in text.getvalue()


def test_a_factorisation_is_called_by_its_modes_or_by_the_side_of_the_kernel() -> None:
    assert [compress_3d.kind("ring", count, 0) for count in (3, 5)] == ["ring3", "ring5"]
    assert compress_3d.kind("canonical", 0, 0) == "terms"
    told = [compress_3d.kind("low-rank", 0, late) for late in range(4)]
    assert told == ["svd_out", "svd_between", "svd_between", "svd_in"]


@pytest.mark.skipif(missing() is not None, reason="TensorLy-Torch is not installed")
def test_peers_have_no_fewer_parameters_than_they_are_compared_at() -> None:
    network = ResNet(1, 1, 0, width=4, depth=DEPTH)
    names = ["blocks.3.first.conv", "blocks.3.second.conv"]
    whole = parameters(network)
    for name in ("tltorch_tucker", "tltorch_tt"):
        made = at_parameters(network, names, tltorch_peers()[name], whole // 2)
        assert whole // 2 <= parameters(made) < 0.9 * whole


def test_a_plan_says_what_it_took() -> None:
    asked = Asked(DECAYING, pcr=2.0, width=2, depth=10)
    row = planned_here(Asked(**json.loads(json.dumps(asdict(asked)))))
    assert row["parameters"] == parameters(Alone(asked))
    assert row["pcr"] >= 2.0
    assert row["layers"] > 0
    assert row["seconds"] > 0
    assert row["peak_mib"] > 50


def test_the_large_network_is_the_one_that_was_asked_for() -> None:
    with torch.device("meta"):
        assert parameters(ResNet(1, 1, 0)) == 63_470_145
    assert {type(asked.config) for asked in compress_3d_plan.ASKED.values()} >= {BudgetConfig}
    assert all((asked.width, asked.depth) == (64, 34) for asked in compress_3d_plan.ASKED.values())


def test_decaying_kernels_have_falling_spectra_and_their_own_norms() -> None:
    asked = Asked(DECAYING, eps=0.5, width=8, depth=10)
    flat, made = Alone(replace(asked, weights=FLAT)), Alone(asked)
    kernels = [
        dict(network.named_parameters())["network.blocks.3.second.conv.weight"].detach()
        for network in (flat, made)
    ]
    assert kernels[0].norm() == pytest.approx(float(kernels[1].norm()), rel=1e-5)
    ranks = [torch.linalg.svdvals(kernel.flatten(1)) for kernel in kernels]
    assert float(ranks[1][32] / ranks[1][0]) < 0.5 * float(ranks[0][32] / ranks[0][0])
    values = torch.linalg.svdvals(falling(9, torch.Generator().manual_seed(1)))
    assert values.tolist() == pytest.approx([(k + 1) ** -0.5 for k in range(9)], rel=1e-5)


def test_cases_without_a_name_are_refused() -> None:
    with pytest.raises(SystemExit, match="there are cohort, plan"):
        compress_3d.run(["nothing"])
