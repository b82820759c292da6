"""Inverses of many triangular matrices by products, which are quicker than substitution row by row.

Blocks on the diagonals are solved for all at once; of two of them, A and B, and the block C between them the
inverse has A^{-1}, B^{-1} and -A^{-1} C B^{-1}, a block of twice the size, until there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAF, SINGLE_LEAF = 16, 64
"""Columns of the blocks that are solved for: of several matrices, and of one by itself."""


def inverted(upper: Tensor) -> Tensor:
    """The inverses of upper triangular matrices (b, r, r)."""
    b, r, _ = upper.shape
    blocks = 1
    while r > blocks * (LEAF if b > 1 else SINGLE_LEAF):
        blocks *= 2
    size = -(-r // blocks)
    if fill := size * blocks - r:
        upper = torch.nn.functional.pad(upper, (0, fill, 0, fill))
        upper.diagonal(dim1=-2, dim2=-1)[:, r:] = 1
    found = torch.linalg.solve_triangular(
        _blocks(upper, size), torch.eye(size, dtype=upper.dtype, device=upper.device), upper=True
    )
    while found.shape[1] > 1:
        found = _paired(found, upper)
    whole: Tensor = found[:, 0, :r, :r]
    return whole


def _paired(found: Tensor, upper: Tensor) -> Tensor:
    """The inverses (b, n, s, s) of blocks on the diagonal as n / 2 of twice the size."""
    first, second = found[:, ::2], found[:, 1::2]
    corner = first @ _blocks(upper, found.shape[-1], 1)[:, ::2] @ -second
    above = torch.cat([first, corner], dim=-1)
    return torch.cat([above, torch.nn.functional.pad(second, (found.shape[-1], 0))], dim=-2)


def _blocks(matrices: Tensor, size: int, offset: int = 0) -> Tensor:
    """The blocks (b, n, size, size) on a diagonal."""
    count = matrices.shape[-1] // size
    cut = matrices.reshape(-1, count, size, count, size).diagonal(offset, dim1=1, dim2=3)
    return torch.permute(cut, (0, 3, 1, 2))
