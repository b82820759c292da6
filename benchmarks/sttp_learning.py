"""What spectral tensor trains learn: a classifier at an equal small budget, and a GAN's singular values.

Learning: wide residual networks on CIFAR-10 (JPEG), STTP against SVDP, in all SEEDS with the same images.

    seeds_ahead                 seeds in which STTP is MARGIN points ahead or more
    least_margin                accuracy of STTP less that of SVDP, in points, the least of the seeds
    share_svdp, share_sttp      numbers in per cent of the dense network's (Z of eq. 11)
    freedom_svdp, freedom_sttp  degrees of freedom; STTP has no more than SVDP

Spectra: the discriminator of a small SNGAN on the same images, one game for each kind.

    over_bound_svdp, _sttp      largest singular value of any layer after any step, less the bound of 1
    over_bound_normalised       the same of spectral normalisation by power iteration
    kept_...                    mean of a layer's singular values over its largest, at the end over that at
                                the start, the least of the layers: falls where few outgrow the others
    certificate_...             bound of the discriminator's Lipschitz constant, at the end
    growth_...                  the same over that at the start
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from benchmarks.cifar_images import missing
from benchmarks.sngan import KINDS, NORMALISED, STTP, SVDP, Game, played
from benchmarks.spectral_classifier import Recipe, compared
from benchmarks.targets import Target, judged, number, show_targets
from models.threads import one_thread

SEEDS = (0, 1, 2)
MARGIN = 2.0
RECIPE, GAME = Recipe(), Game()
PARTS = ("learning", "spectra")
TARGETS = (
    Target("seeds_ahead", len(SEEDS), at_least=True),
    Target("least_margin", MARGIN, at_least=True),
    Target("share_svdp", 2.0),
    Target("share_sttp", 2.0),
    Target("over_bound_svdp", 2e-5),
    Target("over_bound_sttp", 2e-5),
    Target("kept_svdp", 0.95, at_least=True),
    Target("kept_sttp", 0.95, at_least=True),
    Target("kept_plain", 0.5),
)


@one_thread()
def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """Both parts, or one."""
    if reason := missing():
        raise SystemExit(reason)
    if unknown := sorted(set(only or ()) - set(PARTS)):
        raise SystemExit(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    parts = only or PARTS
    learning = (
        {"recipe": asdict(RECIPE), "seeds": list(SEEDS), **compared(SEEDS, RECIPE)}
        if "learning" in parts
        else {}
    )
    games = {kind: played(kind, SEEDS[0], GAME) for kind in KINDS} if "spectra" in parts else {}
    keys = (learning_keys(learning["methods"]) if learning else {}) | (game_keys(games) if games else {})
    return {
        **keys,
        "learning": learning,
        "spectra": {"game": asdict(GAME), "seed": SEEDS[0], "kinds": games} if games else {},
        "targets": judged(keys, TARGETS),
    }


def learning_keys(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Of the classifier."""
    pairs = zip(methods["sttp"]["accuracy"], methods["svdp"]["accuracy"], strict=True)
    margins = [ours - other for ours, other in pairs]
    return {
        "seeds_ahead": sum(margin >= MARGIN for margin in margins),
        "least_margin": min(margins),
        **{f"share_{name}": methods[name]["share_percent"] for name in ("svdp", "sttp")},
        **{f"freedom_{name}": methods[name]["degrees_of_freedom"] for name in ("svdp", "sttp")},
    }


def game_keys(games: Mapping[str, Any]) -> dict[str, Any]:
    """Of the discriminators."""
    return {
        **{f"over_bound_{kind}": max(games[kind]["largest"]) - 1 for kind in (SVDP, STTP, NORMALISED)},
        **{f"kept_{kind}": kept(game) for kind, game in games.items()},
        **{f"growth_{kind}": growth(game) for kind, game in games.items()},
        **{f"certificate_{kind}": game["records"][-1]["certificate"] for kind, game in games.items()},
    }


def kept(game: Mapping[str, Any]) -> float:
    """The least, over layers of several singular values, of how the mean over the largest has changed."""
    first, last = (game["records"][at]["layers"] for at in (0, -1))
    pairs = zip(first, last, strict=True)
    return min(float(end["mean_share"] / start["mean_share"]) for start, end in pairs if start["count"] > 1)


def growth(game: Mapping[str, Any]) -> float:
    """The certificate at the end over that at the start."""
    return float(game["records"][-1]["certificate"] / game["records"][0]["certificate"])


def show(result: dict[str, Any]) -> None:
    """A line for each method, and for each layer of each discriminator."""
    if learning := result["learning"]:
        print(f"{'method':<8}{'rank':>6}{'freedom':>12}{'of dense, %':>13}  accuracy, %")
        for name, row in learning["methods"].items():
            accuracies = ", ".join(f"{value:.2f}" for value in row["accuracy"])
            print(
                f"{name:<8}{row['rank'] or '':>6}{row['degrees_of_freedom']:>12,}"
                f"{row['share_percent']:>13.3f}  {accuracies} (mean {fmean(row['accuracy']):.2f})"
            )
    if spectra := result["spectra"]:
        print(f"\n{'judge':<12}{'layer':>6}{'largest ever':>14}{'mean share, start':>19}{'end':>7}")
        for kind, game in spectra["kinds"].items():
            ends = (game["records"][0]["layers"], game["records"][-1]["layers"])
            for index, (most, start, end) in enumerate(zip(game["largest"], *ends, strict=True)):
                shares = f"{start['mean_share']:>19.3f}{end['mean_share']:>7.3f}"
                print(f"{kind:<12}{index:>6}{number(most):>14}{shares}")
    show_targets(result["targets"])
