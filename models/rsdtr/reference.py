"""The paper's search for a ring (arXiv 2405.10802; reduced storage TR-SVD, Mickelin & Karaman 2018).

For every cyclic shift of the axes and every divisor of the first rank a ring is made by d - 1 truncated
SVDs, each with the relative tolerance eps / sqrt(d - 1); the one of least storage is kept. Where the first
rank is split, the ranks after it depend on the signs of singular vectors: they are LAPACK's, in the arrays'
own dtype, as in the paper's code. `models.rsdtr.search` finds smaller rings.
"""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import InvalidShape, refuse_non_finite
from models.rsdtr.cuts import divisors, refuse_eps
from models.rsdtr.ring import Arrays, Core, RingShape, TensorRing

Matrices = Float[Tensor, "g m n"]


def reference_ring(arrays: Arrays, eps: float) -> TensorRing:
    """The ring of least storage that the paper's search finds: relative error at most `eps`.

    Its cores stand in the axes' own order. Raises InvalidConfig for an `eps` outside of (0, 1), InvalidShape
    for fewer than two axes, NonFinite.
    """
    refuse_eps(eps)
    refuse_non_finite(arrays, "an array")
    if (d := arrays.ndim - 1) < 2:
        raise InvalidShape(f"a ring needs two axes or more, not arrays {tuple(arrays.shape[1:])}")
    best: TensorRing | None = None
    for shift in range(d):
        order = [(shift + k) % d for k in range(d)]
        shifted = arrays.permute(0, *(1 + axis for axis in order))
        for start in divisors(_truncated(_unfolded(shifted, 1), eps / sqrt(d - 1))[0].shape[2]):
            ring = tr_svd(shifted, eps, start)
            if best is None or ring.storage < best.storage:
                best = _rotated(ring, shift)
    assert best is not None
    return best


def tr_svd(arrays: Arrays, eps: float, start: int) -> TensorRing:
    """TR-SVD from the first axis on; `start` is the rank that closes the ring, a divisor of the first one."""
    g, *sizes = arrays.shape
    delta = eps / sqrt(len(sizes) - 1)
    basis, rest = _truncated(_unfolded(arrays, 1), delta)
    if basis.shape[2] % start:
        raise InvalidShape(f"the first rank, {basis.shape[2]}, is no multiple of {start}")
    cores = [basis.reshape(g, sizes[0], start, -1).transpose(1, 2)]
    rest = rest.reshape(g, start, cores[0].shape[3], -1).permute(0, 2, 3, 1)
    for n in sizes[1:-1]:
        left = rest.shape[1]
        basis, rest = _truncated(rest.reshape(g, left * n, -1), delta)
        cores.append(basis.reshape(g, left, n, -1))
    cores.append(rest.reshape(g, rest.shape[1], sizes[-1], start))
    return _ring(tuple(sizes), tuple(cores))


def _ring(sizes: tuple[int, ...], cores: tuple[Core, ...]) -> TensorRing:
    modes = tuple((axis,) for axis in range(len(sizes)))
    return TensorRing(RingShape(sizes, modes, tuple(core.shape[1] for core in cores)), cores)


def _rotated(ring: TensorRing, shift: int) -> TensorRing:
    """A ring of shifted axes with its cores in the axes' own order."""
    d = len(ring.cores)
    back = [(k - shift) % d for k in range(d)]
    return _ring(tuple(ring.shape.sizes[k] for k in back), tuple(ring.cores[k] for k in back))


def _unfolded(arrays: Arrays, axes: int) -> Matrices:
    return arrays.flatten(1 + axes).flatten(1, axes)


def _truncated(matrices: Matrices, delta: float) -> tuple[Matrices, Matrices]:
    """(U, S V^T) of the smallest common rank that leaves strictly less than (delta ||A||)^2 out."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    energies = s.square().sum(0)
    left_out = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
    rank = max(1, int((left_out >= delta**2 * float(energies.sum())).sum()))
    rank = min(rank, s.shape[1])
    return u[..., :rank], s[:, :rank, None] * vh[:, :rank]
