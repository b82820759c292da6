"""What a network minimises, and what its raw outputs mean: by the task.

A network's outputs are raw: they are answers (see `Task`) only after `answers`. Losses are per row, so that
rows may be weighted; average them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.errors import InvalidShape
from models.learning.task import QUANTILE_LEVELS, Task


def losses(
    outputs: Float[Tensor, "n outputs"], targets: Float[Tensor, " n"], task: Task
) -> Float[Tensor, " n"]:
    """Each row's squared error, pinball loss or cross-entropy of raw outputs, differentiable in them.

    Raises InvalidShape for other than (n, task.outputs) and (n,).
    """
    if outputs.shape != (*targets.shape, task.outputs):
        raise InvalidShape(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must be (n, {task.outputs}) "
            f"and (n,) for {task.kind}"
        )
    if task.kind == "classes":
        return functional.cross_entropy(outputs, targets.long(), reduction="none")
    return pinball(outputs, targets) if task.kind == "quantiles" else (outputs[:, 0] - targets).square()


def pinball(quantiles: Float[Tensor, "n q"], targets: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """max(l (y - q), (l - 1) (y - q)), averaged over l in `QUANTILE_LEVELS` (Koenker & Bassett, 1978).

    Its mean is least where q is the l-quantile of y.
    """
    levels = quantiles.new_tensor(QUANTILE_LEVELS)
    missed = targets[:, None] - quantiles
    return torch.maximum(levels * missed, (levels - 1) * missed).mean(dim=1)


def answers(outputs: Float[Tensor, "n outputs"], task: Task) -> Float[Tensor, "n outputs"]:
    """Raw outputs as answers: probabilities by softmax, quantiles put in order."""
    if task.kind == "classes":
        return outputs.softmax(dim=1)
    return outputs.sort(dim=1).values if task.kind == "quantiles" else outputs
