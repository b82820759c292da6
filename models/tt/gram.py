"""Inner products of all pairs of two batches of trains, contracted from left to right.

With E_kl = 1 before the first core, E_kl <- sum_i A_k(i)^T E_kl B_l(i), and <a_k, b_l> is what remains after
the last. Both halves of a step are matrix products with the whole other batch on one side.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidShape
from models.tt.train import TensorTrain

PORTION_NUMBERS = 1 << 20
"""Float64 numbers that a step's intermediate result may take."""


def gram(a: TensorTrain, b: TensorTrain) -> Float64[Tensor, "k l"]:
    """<a_k, b_l> for batches of K and L trains of the same modes: O(K L d n r^3), differentiable in both.

    Pairs are taken in portions of bounded memory (without a gradient: the graph keeps what it needs).
    Raises InvalidShape for other than one batch axis, and for modes that differ.
    """
    for train in (a, b):
        if len(train.batch) != 1:
            raise InvalidShape(f"a Gram matrix is of batches (K, ...), not of batch axes {train.batch}")
    if a.modes != b.modes:
        raise InvalidShape(f"no inner products between modes {a.modes} and {b.modes}")
    pairs = max(1, PORTION_NUMBERS // _numbers_per_pair(a, b))
    columns = min(pairs, b.batch[0])
    rows = max(1, pairs // columns)
    return torch.cat(
        [
            torch.cat(
                [_portion(a[k : k + rows], b[m : m + columns]) for m in range(0, b.batch[0], columns)], 1
            )
            for k in range(0, a.batch[0], rows)
        ]
    )


def _numbers_per_pair(a: TensorTrain, b: TensorTrain) -> int:
    """The largest half-contracted environment (r, n, r') of one pair."""
    left, right = (1, *a.ranks), (*b.ranks, 1)
    return max(before * n * after for before, n, after in zip(left, a.modes, right, strict=True))


def _portion(a: TensorTrain, b: TensorTrain) -> Float64[Tensor, "k l"]:
    K, L = a.batch[0], b.batch[0]
    environment = a.cores[0].new_ones(L, K, 1)
    ranks = zip(pairwise((1, *a.ranks, 1)), pairwise((1, *b.ranks, 1)), strict=True)
    for A, B, ((before, after), (left, right)), n in zip(a.cores, b.cores, ranks, a.modes, strict=True):
        half = environment.reshape(L, K * before, left) @ B.reshape(L, left, n * right)
        half = half.reshape(L, K, before * n, right).permute(1, 2, 0, 3).reshape(K, before * n, L * right)
        whole = A.reshape(K, before * n, after).mT @ half
        environment = whole.reshape(K, after, L, right).permute(2, 0, 1, 3)
    return environment.reshape(L, K).T
