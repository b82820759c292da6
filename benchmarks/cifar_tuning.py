"""Fine-tuning of networks on CIFAR-10's images, a few steps of it, and their accuracy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar_images import Labels, Pixels, augmented, images, normalised
from models.compression.recalibration import recalibrate_

STEPS, BATCH = 80, 128
RATES = (0.003, 0.01)
"""Largest learning rates that are tried; the one of the better validation is taken."""
MOMENTUM, DECAY = 0.9, 1e-4
HELD_OUT = 8
"""Every so many-th image of the training set validates."""
CALIBRATION = 2560
"""Images without labels that normalisations are recalibrated with."""

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
    rates: Iterable[float] = RATES,
    steps: int = STEPS,
    seed: int = 0,
) -> Network:
    """The best of copies that were tuned at each rate, as it is or recalibrated, by its validation."""
    found: list[tuple[float, Network]] = []
    for rate in rates:
        made = descended(copy.deepcopy(network), rate, steps, seed)
        found.append((accuracy(made, *validation()), made))
        again = recalibrate_(copy.deepcopy(made), calibrating)
        found.append((accuracy(again, *validation()), again))
    return max(found, key=lambda each: each[0])[1]


def descended(network: Network, rate: float, steps: int, seed: int) -> Network:
    """Some steps of SGD with one cycle of the rate, in place; in evaluation afterwards."""
    pixels, labels = training()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    if steps * BATCH > len(order):
        raise ValueError(f"{steps} steps of {BATCH} images are more than one epoch of {len(order)}")
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    network.train()
    for step in range(steps):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = augmented(normalised(pixels[chosen]), generator)
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(network(batch), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    network.eval()
    return network
