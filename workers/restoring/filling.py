"""Gaps of a box of any shape, filled as those of the smallest cube of side 2^L that holds it."""

from __future__ import annotations

import torch

from models.putt.completion import filled, smoothly_filled
from workers.restoring.boxes import Bools, Float64


def filled_box(values: Float64, observed: Bools, device: str, *, smoothly: bool = False) -> Float64:
    """A box with what was not observed filled from what was, one voxel at least: from the pyramid, or bent as
    little as may be (models/putt/completion.py).
    """
    side = max(2, 1 << (max(values.shape) - 1).bit_length())
    cube, mask = torch.zeros((2, side, side, side), dtype=torch.float64)
    part = tuple(slice(n) for n in values.shape)
    cube[part], mask[part] = torch.from_numpy(values), torch.from_numpy(observed).double()
    fill = smoothly_filled if smoothly else filled
    return fill(cube.to(device), mask.to(device))[part].cpu().numpy()
