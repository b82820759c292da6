"""sttp_learning at tiny sizes: budgets and counts are the networks', spectra are those of the weights."""

from __future__ import annotations

import importlib.util
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import sngan, spectral_classifier, sttp_learning
from benchmarks.results.tables import learnt
from benchmarks.sngan import KINDS, Game, discriminator, evaluating, generator, matrices, played, weighted
from benchmarks.spectral_classifier import (
    Recipe,
    accuracy,
    batches,
    compared,
    degrees_of_freedom,
    largest_rank,
    network_of,
    numbers,
    others,
    ranks_of,
)
from benchmarks.sttp_counts import wide_resnet
from benchmarks.wide_resnet import WideResNet
from models.sttp.bounds import operator_bound
from models.sttp.weights import Layer

RECIPE = Recipe(widening=1, stride=4, share=0.05, train=40, test=20, batch=8, steps=2)
GAME = Game(base=4, latent=8, rank=6, images=40, batch=4, steps=7, rounds=2, records=3)

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is in the extra bench"
)


@pytest.fixture(autouse=True)
def made_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the place of CIFAR-10, lighter from label to label."""

    def made(split: str, count: int | None = None, every: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count or 20) % 10
        noise = torch.randint(0, 16, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(0))
        return (noise + 20 * labels[:, None, None, None]).to(torch.uint8), labels

    for module in (spectral_classifier, sngan):
        monkeypatch.setattr(module, "images", made)
    monkeypatch.setattr(sttp_learning, "missing", lambda: None)


@pytest.mark.parametrize(("depth", "widening"), [(10, 1), (16, 2), (22, 1)])
def test_a_wide_resnet_has_the_weights_and_numbers_that_are_counted(depth: int, widening: int) -> None:
    shapes, rest = wide_resnet(depth, widening)
    network = WideResNet(depth, widening)
    found = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, Layer)]
    assert sorted(found) == sorted(shapes)
    assert others(network) == rest
    assert numbers(network) == rest + sum(map(math.prod, shapes))


def test_ranks_are_the_largest_within_the_budget_and_sttp_has_no_more_than_svdp() -> None:
    ranks = ranks_of(RECIPE)
    dense = network_of("dense", None, RECIPE)
    freedom = {name: degrees_of_freedom(name, rank, dense) for name, rank in ranks.items()}
    more = {name: degrees_of_freedom(name, rank + 1, dense) for name, rank in ranks.items()}
    assert freedom["svdp"] + others(dense) <= 0.05 * numbers(dense) < more["svdp"] + others(dense)
    assert freedom["sttp"] <= freedom["svdp"] < more["sttp"]
    assert ranks["sttp"] > ranks["svdp"]


def test_a_budget_below_rank_one_is_refused() -> None:
    with pytest.raises(ValueError, match="svdp of rank 1"):
        largest_rank("svdp", network_of("dense", None, RECIPE), 100)


def test_both_methods_are_compared_at_their_counts_and_the_same_seed_gives_the_same() -> None:
    told = compared((0, 1), RECIPE)
    dense = network_of("dense", None, RECIPE)
    for name, rank in ranks_of(RECIPE).items():
        row = told["methods"][name]
        assert row["rank"] == rank
        assert row["degrees_of_freedom"] == degrees_of_freedom(name, rank, dense)
        assert row["share_percent"] == pytest.approx(
            100 * (row["degrees_of_freedom"] + others(dense)) / numbers(dense)
        )
        assert row["share_percent"] <= 5
        assert len(row["accuracy"]) == 2
        assert row["loss"][0] != row["loss"][1]
    assert told["methods"]["dense"]["share_percent"] == 100
    assert len(told["methods"]["dense"]["accuracy"]) == 1
    again = spectral_classifier.learnt("sttp", ranks_of(RECIPE)["sttp"], 1, RECIPE)
    assert again.loss == told["methods"]["sttp"]["loss"][1]


def test_training_lowers_the_loss_of_images_that_can_be_told_apart() -> None:
    recipe = Recipe(widening=1, stride=4, share=0.1, train=40, test=40, batch=20, steps=20, rate=0.05)
    torch.manual_seed(0)
    network = network_of("sttp", ranks_of(recipe)["sttp"], recipe)
    loss = spectral_classifier.train_(network, recipe, torch.Generator().manual_seed(0))
    assert loss < 0.9 * math.log(10)


def test_accuracy_is_of_the_test_images_in_evaluation() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.eye(10)[7].expand(len(x), 10)

    assert accuracy(Always(), Recipe(test=20)) == pytest.approx(10.0)


def test_each_image_is_taken_once_before_any_a_second_time() -> None:
    recipe = Recipe(train=40, batch=16, steps=5)
    taken = torch.cat([pixels for pixels, _ in batches(recipe, torch.Generator().manual_seed(0))])
    assert len(taken) == 80
    for half in taken.split(40):
        assert len(half.flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_game_records_the_spectra_of_its_weights(kind: str) -> None:
    game = played(kind, 0, GAME)
    assert [record["step"] for record in game["records"]] == [0, 3, 5, 7]
    for record in game["records"]:
        assert [layer["count"] for layer in record["layers"]] == (
            [4, 4, 8, 8, 16, 16, 32, 1] if kind in {"plain", "normalised"} else [4, 4, 6, 6, 6, 6, 6, 1]
        )
        for layer in record["layers"]:
            assert layer["drawn"][0] == pytest.approx(layer["largest"], abs=1e-5)
            assert 0 < layer["least_share"] <= layer["mean_share"] <= 1
    last = [layer["largest"] for layer in game["records"][-1]["layers"]]
    assert all(most >= one - 1e-12 for most, one in zip(game["largest"], last, strict=True))
    if kind in {"svdp", "sttp"}:
        assert max(game["largest"]) <= 1 + 2e-5
        assert min(game["largest"]) >= 1 - 2e-5


def test_all_weights_move_in_every_kind_but_those_of_the_single_score() -> None:
    for kind in KINDS:
        torch.manual_seed(0)
        maker, judge = generator(GAME), discriminator(kind, GAME)
        moving = [each for net in (maker, judge[:-1]) for each in net.parameters() if each.numel()]
        before = [each.clone() for each in moving]
        list(sngan.steps(maker, judge, GAME, torch.Generator().manual_seed(0)))
        assert not any(torch.equal(*pair) for pair in zip(before, moving, strict=True)), kind


def test_plain_and_normalised_games_begin_with_the_same_weights() -> None:
    networks = []
    for kind in ("plain", "normalised"):
        torch.manual_seed(0)
        networks.append((generator(GAME), discriminator(kind, GAME)))
    (maker, judge), (other_maker, other) = networks
    assert all(torch.equal(*pair) for pair in zip(maker.parameters(), other_maker.parameters(), strict=True))
    originals = [layer.parametrizations.weight.original for layer in weighted(other).values()]
    assert all(
        torch.equal(layer.weight, one) for layer, one in zip(weighted(judge).values(), originals, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_is_above_all_slopes(kind: str) -> None:
    torch.manual_seed(1)
    judge = discriminator(kind, GAME)
    x = torch.randn(16, 3, 32, 32, requires_grad=True)
    with evaluating(judge):
        (slopes,) = torch.autograd.grad(judge(x).sum(), x)
        bound = operator_bound(judge)
    assert slopes.flatten(1).norm(dim=1).max() <= bound


def test_norms_are_of_the_weights_and_looking_does_not_change_them() -> None:
    torch.manual_seed(0)
    judge = discriminator("normalised", GAME)
    first = matrices(judge)
    norms = sngan.norms(judge)
    assert all(torch.equal(*pair) for pair in zip(first, matrices(judge), strict=True))
    for norm, matrix in zip(norms, first, strict=True):
        exact = torch.linalg.svdvals(matrix.detach())[0]
        assert float(norm) == pytest.approx(float(exact), rel=1e-12)
    assert judge.training


def test_a_summary_is_of_the_spectrum() -> None:
    told = sngan.summary(torch.tensor([2.0, 1.0, 0.5, 0.5], dtype=torch.float64))
    assert told == {
        "count": 4,
        "largest": 2.0,
        "mean_share": 0.5,
        "least_share": 0.25,
        "drawn": [2.0, 1.0, 0.5, 0.5],
    }
    many = sngan.summary(torch.linspace(1, 0.5, 100, dtype=torch.float64))["drawn"]
    assert len(many) == sngan.DRAWN
    assert (many[0], many[-1]) == (1.0, 0.5)


def test_the_benchmark_tells_its_keys_and_judges_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sttp_learning, "RECIPE", RECIPE)
    monkeypatch.setattr(sttp_learning, "GAME", GAME)
    monkeypatch.setattr(sttp_learning, "SEEDS", (0,))
    result = sttp_learning.run()
    assert {answer["key"] for answer in result["targets"]} == {each.key for each in sttp_learning.TARGETS}
    methods = result["learning"]["methods"]
    margins = [a - b for a, b in zip(methods["sttp"]["accuracy"], methods["svdp"]["accuracy"], strict=True)]
    assert result["least_margin"] == min(margins)
    assert result["freedom_sttp"] <= result["freedom_svdp"]
    kinds = result["spectra"]["kinds"]
    assert result["over_bound_sttp"] == max(kinds["sttp"]["largest"]) - 1
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    sttp_learning.show(result)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*methods, *kinds, "least_margin"))
    _, _, *rows = learnt(methods).splitlines()
    sttp = methods["sttp"]
    assert f"| sttp | {sttp['rank']} | {sttp['degrees_of_freedom']:,} | " in rows[1]
    assert [row.split(" | ")[-1] for row in rows] == [
        f"{row['accuracy'][0]:.2f} |" for row in methods.values()
    ]


def test_keys_are_the_worst_of_seeds_and_layers() -> None:
    def row(*values: float) -> dict[str, Any]:
        return {"accuracy": values, "share_percent": 1.5, "degrees_of_freedom": 9}

    keys = sttp_learning.learning_keys({"sttp": row(50, 47, 49), "svdp": row(40, 45.5, 47)})
    assert keys["seeds_ahead"] == 2
    assert keys["least_margin"] == 1.5

    def record(*layers: tuple[int, float]) -> dict[str, Any]:
        return {"layers": [{"count": count, "mean_share": share} for count, share in layers]}

    records = [record((4, 0.5), (8, 0.8), (1, 1.0)), record(), record((4, 0.4), (8, 0.2), (1, 0.1))]
    assert sttp_learning.kept({"records": records}) == 0.25


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SystemExit, match="no part x"):
        sttp_learning.run(["x"])


@needs_matplotlib
def test_the_figure_of_spectra_has_a_panel_for_each_layer_of_several_values() -> None:
    from benchmarks.results.spectra import spectra

    kinds = {kind: played(kind, 0, GAME) for kind in ("plain", "normalised")}
    panels = spectra(kinds).axes
    assert len(panels) == 2 * 7
    for panel, layer in zip(panels, [*range(7)] * 2, strict=True):
        records = kinds["plain" if panel in panels[:7] else "normalised"]["records"]
        *courses, bound = panel.get_lines()
        assert set(bound.get_ydata()) == {1.0}
        largest = [round(record["layers"][layer]["largest"], 5) for record in records]
        assert list(courses[0].get_ydata()) == largest
        assert list(courses[0].get_xdata()) == [0, 3, 5, 7]
        assert panel.get_ylim()[1] >= max(largest)
