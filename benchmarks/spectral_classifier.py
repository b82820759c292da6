"""Wide residual networks with STTP and SVDP weights at an equal budget learn CIFAR-10 (the paper's Fig. 7).

All convolutions and the linear layer are parametrised with one rank and a learned spectrum (L). SVDP has the
largest rank that the budget allows, STTP the largest that has no more degrees of freedom than SVDP then has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar_images import augmented, images, normalised
from benchmarks.wide_resnet import WideResNet
from models.sttp.apply import SpectralConfig, spectral_
from models.sttp.weights import Layer, WeightShape, weight_shape

DENSE = "dense"
TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """A network, what it learns from, and how.

    `share`: the budget, of the dense network's numbers (Z of eq. 11). `train` and `test`: how many images.
    The rate falls linearly to 0. `start` is that of `SpectralConfig`.
    """

    depth: int = 10
    widening: int = 6
    stride: int = 2
    share: float = 0.02
    train: int = 20_000
    test: int = 5_000
    batch: int = 128
    steps: int = 300
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    start: str = "weight"


def network_of(method: str, rank: int | None, recipe: Recipe) -> nn.Module:
    """A fresh network, by torch's random numbers; dense with no rank."""
    network = WideResNet(recipe.depth, recipe.widening, recipe.stride)
    if rank is None:
        return network
    return spectral_(network, SpectralConfig(method, rank=rank, start=recipe.start, bound=1.0))


def ranks_of(recipe: Recipe) -> dict[str, int]:
    """Of each method. Raises ValueError where SVDP of rank 1 is beyond the budget."""
    dense = network_of(DENSE, None, recipe)
    allowed = int(recipe.share * numbers(dense)) - others(dense)
    svdp = largest_rank("svdp", dense, allowed)
    return {
        "svdp": svdp,
        "sttp": largest_rank("sttp", dense, degrees_of_freedom("svdp", svdp, dense)),
    }


def largest_rank(method: str, dense: nn.Module, allowed: int) -> int:
    """The largest with at most so many degrees of freedom. Raises ValueError where rank 1 has more."""
    rank = 0
    widest = max(shape.smaller for shape in weights_of(dense))
    while rank < widest and degrees_of_freedom(method, rank + 1, dense) <= allowed:
        rank += 1
    if not rank:
        raise ValueError(f"{method} of rank 1 has more than the {allowed:,} degrees of freedom allowed")
    return rank


def degrees_of_freedom(method: str, rank: int, dense: nn.Module) -> int:
    """Of all weights (eq. 9)."""
    return sum(shape.groups * shape.layout(method, rank).parameters for shape in weights_of(dense))


def weights_of(network: nn.Module) -> list[WeightShape]:
    """Of all layers that are parametrised."""
    return [weight_shape(layer) for layer in network.modules() if isinstance(layer, Layer)]


def numbers(network: nn.Module) -> int:
    """Parameters and running statistics."""
    counted = [*network.parameters(), *running(network)]
    return sum(each.numel() for each in counted)


def others(network: nn.Module) -> int:
    """Numbers that no parametrization touches (C of eq. 11): biases and normalisations."""
    kept = [each for name, each in network.named_parameters() if not _is_of_weight(name, network)]
    return sum(each.numel() for each in [*kept, *running(network)])


def running(network: nn.Module) -> Iterator[Tensor]:
    """Statistics of normalisations."""
    return (each for name, each in network.named_buffers() if name.endswith(("running_mean", "running_var")))


def _is_of_weight(name: str, network: nn.Module) -> bool:
    owner, _, own = name.partition(".parametrizations.weight.") if ".param" in name else name.rpartition(".")
    return isinstance(network.get_submodule(owner), Layer) and own != "bias"


def compared(seeds: Sequence[int], recipe: Recipe) -> dict[str, Any]:
    """Both methods in all seeds, and the dense network in the first: ranks, numbers and accuracies."""
    ranks: dict[str, int | None] = {**ranks_of(recipe), DENSE: None}
    whole = numbers(network_of(DENSE, None, recipe))
    methods = {}
    for method, rank in ranks.items():
        outcomes = [learnt(method, rank, seed, recipe) for seed in (seeds[:1] if rank is None else seeds)]
        methods[method] = {
            "rank": rank,
            "degrees_of_freedom": outcomes[0].degrees_of_freedom,
            "share_percent": 100 * outcomes[0].numbers / whole,
            **{key: [getattr(each, key) for each in outcomes] for key in ("accuracy", "loss", "cpu_s")},
        }
    return {"dense_numbers": whole, "methods": methods}


@dataclass
class Outcome:
    """Per cent of test images that are right, and how it went."""

    accuracy: float
    loss: float
    cpu_s: float
    numbers: int
    degrees_of_freedom: int


def learnt(method: str, rank: int | None, seed: int, recipe: Recipe) -> Outcome:
    """Train one network, from this seed, and look at its test images."""
    start = time.process_time()
    torch.manual_seed(seed)
    network = network_of(method, rank, recipe)
    loss = train_(network, recipe, torch.Generator().manual_seed(seed))
    right = accuracy(network, recipe)
    counted = numbers(network)
    return Outcome(right, loss, time.process_time() - start, counted, counted - others(network))


def train_(network: nn.Module, recipe: Recipe, generator: torch.Generator) -> float:
    """SGD; the mean cross-entropy of the last tenth of the steps."""
    network.train()
    optimiser = torch.optim.SGD(
        network.parameters(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / recipe.steps)
    losses = []
    for pixels, labels in batches(recipe, generator):
        loss = functional.cross_entropy(network(normalised(augmented(pixels, generator))), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, recipe.steps // 10) :]
    return sum(last) / len(last)


def batches(recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """`recipe.steps` batches; each image once before any a second time."""
    pixels, labels = images("train", recipe.train)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        yield pixels[chosen], labels[chosen]


@torch.no_grad()
def accuracy(network: nn.Module, recipe: Recipe) -> float:
    """Per cent of the test images."""
    network.eval()
    pixels, labels = images("test", recipe.test)
    found = [network(normalised(some)).argmax(dim=1) for some in torch.split(pixels, TEST_BATCH)]
    return 100 * float((torch.cat(found) == labels).double().mean())
