"""A small SNGAN on CIFAR-10 (Miyato et al. 2018), and what becomes of its discriminator's singular values.

The discriminator is plain, or has spectral normalisation (by power iteration), or SVDP-R or STTP-R weights
of bound 1; the generator is the same for all. Hinge loss, Adam (0, 0.9).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.cifar_images import images
from models.sttp.apply import SpectralConfig, spectral_
from models.sttp.bounds import operator_bound
from models.sttp.parametrizations import regularised, spectral_of
from models.sttp.spectrum import d_optimal
from models.sttp.weights import Layer, weight_shape

PLAIN, NORMALISED, SVDP, STTP = "plain", "normalised", "svdp", "sttp"
KINDS = (PLAIN, NORMALISED, SVDP, STTP)
"""Of discriminators."""
SLOPE = 0.1
"""Of leaky ReLU below zero."""
DRAWN = 12
"""Singular values of a layer that a record names."""


@dataclass(frozen=True)
class Game:
    """Sizes and settings. `steps` are the discriminator's; the generator has one for each `rounds` of them.

    `base`: channels of the discriminator's first layer; `records`: how often the spectra are recorded, after
    the start.
    """

    base: int = 16
    latent: int = 128
    rank: int = 32
    images: int = 20_000
    batch: int = 64
    steps: int = 800
    rounds: int = 2
    rate: float = 1e-3
    penalty: float = 1.0
    records: int = 20


def discriminator(kind: str, game: Game) -> nn.Sequential:
    """Seven convolutions and a linear layer: images (n, 3, 32, 32) to one score each."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (game.base, 2 * game.base, 4 * game.base):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        inputs = width
    layers += [nn.Conv2d(inputs, 2 * inputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * inputs * 16, 1))
    if kind == NORMALISED:
        for layer in weighted(network).values():
            spectral_norm(layer)
    elif kind != PLAIN:
        spectral_(
            network,
            SpectralConfig(kind, rank=game.rank, spectrum="regularised", bound=1.0, start="identity"),
        )
    return network


def generator(game: Game) -> nn.Sequential:
    """Latents (n, latent) to images (n, 3, 32, 32) in [-1, 1]."""
    inputs = 8 * game.base
    layers: list[nn.Module] = [
        nn.Linear(game.latent, inputs * 16),
        nn.Unflatten(1, (inputs, 4, 4)),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
    ]
    for width in (4 * game.base, 2 * game.base, game.base):
        layers += [
            nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inputs = width
    return nn.Sequential(*layers, nn.Conv2d(inputs, 3, 3, padding=1), nn.Tanh())


def weighted(network: nn.Module) -> dict[str, nn.Module]:
    """Layers with a weight, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Layer)}


def played(kind: str, seed: int, game: Game) -> dict[str, Any]:
    """Play a game; the spectra, the largest singular values of all steps, and the certificates.

    Networks and images are those of `seed`: generators and plain weights begin alike in all kinds.
    """
    start = time.process_time()
    torch.manual_seed(seed)
    maker = generator(game)
    judge = discriminator(kind, game)
    largest, records = [], [record(judge, 0)]
    for step in steps(maker, judge, game, torch.Generator().manual_seed(seed)):
        largest.append([float(norm) for norm in norms(judge)])
        if step * game.records % game.steps < game.records:
            records.append(record(judge, step))
    return {
        "parameters": sum(each.numel() for each in judge.parameters()),
        "largest": torch.tensor(largest, dtype=torch.float64).amax(dim=0).tolist(),
        "records": records,
        "cpu_s": time.process_time() - start,
    }


def steps(maker: nn.Module, judge: nn.Module, game: Game, source: torch.Generator) -> Iterator[int]:
    """Train both; the number of each of the discriminator's steps after it was taken."""
    optimisers = [torch.optim.Adam(net.parameters(), game.rate, betas=(0.0, 0.9)) for net in (maker, judge)]
    pixels = images("train", game.images)[0]
    for step in range(1, game.steps + 1):
        chosen = torch.randint(len(pixels), (game.batch,), generator=source)
        real = pixels[chosen] / 127.5 - 1
        with torch.no_grad():
            fake = maker(latents(game, source))
        _step(optimisers[1], _judge_loss(judge, real, fake, game))
        if step % game.rounds == 0:
            judge.requires_grad_(False)
            _step(optimisers[0], -judge(maker(latents(game, source))).mean())
            judge.requires_grad_(True)
        yield step


def latents(game: Game, source: torch.Generator) -> Float[Tensor, "n latent"]:
    """Of one batch."""
    return torch.randn(game.batch, game.latent, generator=source)


def _judge_loss(judge: nn.Module, real: Tensor, fake: Tensor, game: Game) -> Tensor:
    """Hinge, and the D-optimal penalty of regularised spectra."""
    of_real, of_fake = judge(torch.cat([real, fake])).chunk(2)
    loss = functional.relu(1 - of_real).mean() + functional.relu(1 + of_fake).mean()
    spectra = regularised(judge)
    return loss + game.penalty * d_optimal(spectra) if spectra else loss


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


@torch.no_grad()
def norms(judge: nn.Module) -> list[Tensor]:
    """The largest singular value of each layer's matrix, in float64."""
    grams = (matrix @ matrix.mT for matrix in matrices(judge))
    return [torch.linalg.eigvalsh(gram)[-1].sqrt() for gram in grams]


def matrices(judge: nn.Module) -> list[Tensor]:
    """(outputs, inputs times kernel) of each layer, in float64."""
    with evaluating(judge):
        return [
            weight_shape(layer).matrices(cast(Tensor, layer.weight))[0].double()
            for layer in weighted(judge).values()
        ]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation meanwhile: there reading a weight is no step of a power iteration."""
    before = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(before)


@torch.no_grad()
def record(judge: nn.Module, step: int) -> dict[str, Any]:
    """The layers' spectra, and the certified bound of the network."""
    with evaluating(judge):
        widths = [held(layer) for layer in weighted(judge).values()]
        certificate = operator_bound(judge)
    found = zip(matrices(judge), widths, strict=True)
    spectra = [torch.linalg.svdvals(matrix)[:width] for matrix, width in found]
    return {"step": step, "certificate": certificate, "layers": [summary(each) for each in spectra]}


def summary(spectrum: Tensor) -> dict[str, Any]:
    """Of descending singular values; `drawn` are DRAWN of them, from the largest to the smallest."""
    count = len(spectrum)
    places = sorted({round(k * (count - 1) / (DRAWN - 1)) for k in range(DRAWN)})
    shares = spectrum / spectrum[0]
    return {
        "count": count,
        "largest": float(spectrum[0]),
        "mean_share": float(shares.mean()),
        "least_share": float(shares[-1]),
        "drawn": [round(value, 5) for value in spectrum[places].tolist()],
    }


def held(layer: nn.Module) -> int:
    """How many singular values of a layer's matrix are not zero by construction."""
    spectral = spectral_of(layer)
    return weight_shape(layer).smaller if spectral is None else spectral.layout.width
