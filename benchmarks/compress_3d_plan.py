"""A plan for the ResNet-34 of three dimensions, 63.5 M parameters, in a process of its own.

Its weights are random: `flat` as they are drawn, which is the hard case (spectra bound little, and nothing is
gained at small errors), or `decaying`, each kernel multiplied on its outputs and inputs by matrices whose
singular values fall as k^(-1/2), in random bases. Both are drawn from a fixed seed; neither is trained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import peak_rss_mib
from models.compression.budgets import BudgetConfig
from models.compression.planning import plan
from models.regressors.resnet import ResNet
from models.rsdtr.candidates import RingConfig

SEED, DECAY = 0, 0.5
SIDE = 32
"""Voxels along each axis of the example: it changes MACs, and not the time."""
LONGEST_S = 3600
FLAT, DECAYING = "flat", "decaying"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is planned: an error or a PCR, for a network of these weights."""

    weights: str
    eps: float | None = None
    pcr: float | None = None
    width: int = 64
    depth: int = 34

    @property
    def config(self) -> RingConfig | BudgetConfig:
        """As `plan` takes it."""
        return BudgetConfig(pcr=self.pcr) if self.eps is None else RingConfig(self.eps)


ASKED = {"eps_flat": Asked(FLAT, eps=0.5), "pcr_decaying": Asked(DECAYING, pcr=3.0)}


def planned_alone(asked: Mapping[str, Asked] = ASKED) -> dict[str, Row]:
    """Each in a fresh process, one after another."""
    return {name: child(each) for name, each in asked.items()}


def child(asked: Asked) -> Row:
    """A fresh process of one thread."""
    command = [sys.executable, "-m", "benchmarks.compress_3d_plan", json.dumps(asdict(asked))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=LONGEST_S, env=environment
    )
    row: Row = json.loads(done.stdout)
    return row


def planned_here(asked: Asked) -> Row:
    """Processor seconds of the plan, and this process' peak."""
    torch.set_num_threads(1)
    network = Alone(asked)
    start = time.process_time()
    made = plan(network, torch.zeros(1, 1, SIDE, SIDE, SIDE), asked.config)
    return {
        "seconds": time.process_time() - start,
        "peak_mib": peak_rss_mib(),
        "parameters": made.parameters,
        "pcr": made.pcr,
        "fcr": made.macs / made.macs_after,
        "layers": len(made.forms),
        "weights": asked.weights,
        "config": made.config,
    }


class Alone(nn.Module):
    """A network whose input is a volume, without covariates."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.network = ResNet(1, 1, SEED, width=asked.width, depth=asked.depth).eval()
        if asked.weights == DECAYING:
            decay_(self.network)

    def forward(self, volumes: Tensor) -> Tensor:
        """One output for each volume."""
        rows = torch.arange(len(volumes))
        made: Tensor = self.network(volumes, torch.zeros(len(volumes), 0), rows)
        return made


@torch.no_grad()
def decay_(network: nn.Module) -> None:
    """Give kernels of more than one voxel spectra that fall, and the norm that they had."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size != (1, 1, 1):
            weight, (outputs, inputs) = layer.weight, layer.weight.shape[:2]
            left, right = falling(outputs, generator), falling(inputs, generator)
            made = torch.einsum("ab,bczyx,cd->adzyx", left, weight, right)
            weight.copy_(made * (weight.norm() / made.norm()))


def falling(size: int, generator: torch.Generator) -> Tensor:
    """A matrix with the singular values 1, 2^-DECAY, 3^-DECAY, ... in random bases."""
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
    made: Tensor = (left * torch.arange(1, size + 1) ** -DECAY) @ right
    return made


if __name__ == "__main__":
    print(json.dumps(planned_here(Asked(**json.loads(sys.argv[1])))))
