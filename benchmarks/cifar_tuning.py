"""Fine-tuning of networks on CIFAR-10's images, a few steps of it, and their accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar_images import Labels, Pixels, augmented, images, normalised
from models.compression.recalibration import recalibrate_

STEPS, BATCH = 80, 128
MOMENTUM, DECAY, BETAS = 0.9, 1e-4, (0.9, 0.99)
CLIP = 1.0
"""The largest norm of a gradient that RAdam takes, as in the project's own loop."""
HELD_OUT = 8
"""Every so many-th image of the training set validates."""
CALIBRATION = 2560
"""Images without labels that normalisations are recalibrated with."""

Optimise = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def sgd(rate: float) -> Optimise:
    """With momentum, as the paper's recipe."""
    return lambda weights: torch.optim.SGD(weights, lr=rate, momentum=MOMENTUM, weight_decay=DECAY)


def radam(rate: float) -> Optimise:
    """As `models.training` descends: what factors of three, whose gradients are products, ask for."""
    return lambda weights: torch.optim.RAdam(weights, lr=rate, betas=BETAS)


WAYS: dict[str, Optimise] = {"sgd 0.01": sgd(0.01), "radam 0.001": radam(1e-3), "radam 0.0003": radam(3e-4)}
"""That are tried, beside none; the one of the best validation is taken."""

Network = TypeVar("Network", bound=nn.Module)


def training() -> tuple[Pixels, Labels]:
    """What is learned from."""
    pixels, labels = images("train")
    kept = torch.arange(len(labels)) % HELD_OUT != 0
    return pixels[kept], labels[kept]


def validation() -> tuple[Pixels, Labels]:
    """The other images of the training set."""
    return images("train", every=HELD_OUT)


def calibration() -> list[Tensor]:
    """Batches without labels."""
    pixels, _ = training()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))
    return list(torch.split(normalised(pixels[order[:CALIBRATION]]), BATCH))


@torch.no_grad()
def accuracy(network: nn.Module, pixels: Pixels, labels: Labels) -> float:
    """The share of images whose label has the highest score."""
    network.eval()
    right = [
        int((network(normalised(batch)).argmax(1) == told).sum())
        for batch, told in zip(torch.split(pixels, 500), torch.split(labels, 500), strict=True)
    ]
    return sum(right) / len(labels)


def tuned(
    network: Network,
    calibrating: Sequence[Tensor],
    *,
    ways: Mapping[str, Optimise] = WAYS,
    steps: int = STEPS,
    seed: int = 0,
) -> tuple[str, Network]:
    """The best, and how it came about: the network as it is, or tuned in each way, and recalibrated too."""
    found = [("not at all", accuracy(network, *validation()), network)]
    for name, optimise in ways.items():
        made = descended(copy.deepcopy(network), optimise, steps, seed)
        found.append((name, accuracy(made, *validation()), made))
        again = recalibrate_(copy.deepcopy(made), calibrating)
        found.append((f"{name}, recalibrated", accuracy(again, *validation()), again))
    best, _, made = max(found, key=lambda each: each[1])
    return best, made


def descended(network: Network, optimise: Optimise, steps: int, seed: int) -> Network:
    """Some steps with one cycle of the rate, in place; in evaluation afterwards."""
    pixels, labels = training()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    if steps * BATCH > len(order):
        raise ValueError(f"{steps} steps of {BATCH} images are more than one epoch of {len(order)}")
    weights = list(network.parameters())
    optimiser = optimise(weights)
    rate = optimiser.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, cycle_momentum=False)
    network.train()
    for step in range(steps):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = augmented(normalised(pixels[chosen]), generator)
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(network(batch), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        if isinstance(optimiser, torch.optim.RAdam):
            nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        schedule.step()
    network.eval()
    return network
