"""A side of a spectral train: the product of its frames, and frames from a product.

A chain's frames, multiplied from the outer end, are one frame again (Obukhov et al., arXiv:2103.04217,
Proposition 1). Any subspace has such a chain at ranks high enough: TT-SVD from the outer end, each core but
the last turned by an orthogonal matrix so that its leading block is upper triangular, and the inverse turned
into the next one (ours: the paper does not import weights).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.sttp.frames import Frame, frames, full_precision, reflectors
from models.sttp.shapes import Chain


def product(packed: Tensor, chain: Chain, *, backwards: bool = False) -> Tensor:
    """The frame (..., d, r) of a chain's packed entries.

    Its first mode is the slowest index of the rows, or `backwards` the fastest.
    """
    with full_precision(packed):
        return multiplied(frames(packed, chain.frames), chain, backwards=backwards)


def multiplied(cores: Iterable[Tensor], chain: Chain, *, backwards: bool = False) -> Tensor:
    """The product of the chain's frames themselves."""
    first, *others = cores
    for core, n in zip(others, chain.modes[1:], strict=True):
        first = _joined(first, core, n, backwards=backwards)
    return first


def subspace(matrix: Tensor, chain: Chain, *, backwards: bool = False) -> list[Tensor]:
    """A chain's frames for a matrix (d, c), c >= r: TT-SVD of its columns from the outer end.

    What the frames' product spans is the best subspace of each bond in turn; its orientation is any.
    """
    first, cores = _split(matrix, chain.modes[0], backwards), []
    rest = matrix.shape[0] // chain.modes[0]
    for k, shape in enumerate(chain.frames):
        core, sigma, vh = torch.linalg.svd(first.reshape(shape.rows, -1), full_matrices=False)
        cores.append(core[:, : shape.columns])
        if k + 1 == len(chain.frames):
            return cores
        n = chain.modes[k + 1]
        carried = sigma[: shape.columns, None] * vh[: shape.columns]
        first = _next(carried, n, rest, backwards)
        rest //= n
    return cores


def packed_chain(cores: Iterable[Tensor], chain: Chain, *, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """(packed, turn): the chain's product is that of the packed entries times `turn` (r, r), orthogonal.

    `turn` is diagonal, of signs, where the last frame is not reduced.
    """
    entries, turn = [], None
    for core, shape in zip(cores, chain.frames, strict=True):
        turned = core if turn is None else _turned(core, turn, backwards)
        gauge = _rq(turned[: shape.columns]) if shape.reduced else torch.eye(shape.columns).to(turned)
        part, signs = _reflected(turned @ gauge.mT, shape)
        entries.append(part)
        turn = signs[:, None] * gauge
    assert turn is not None
    return torch.cat(entries), turn


def _reflected(turned: Tensor, shape: Frame) -> tuple[Tensor, Tensor]:
    exact = turned
    if shape.reduced:
        exact = torch.cat([turned[: shape.columns].triu(), turned[shape.columns :]])
    return reflectors(exact, reduced=shape.reduced)


def _joined(before: Tensor, core: Tensor, n: int, *, backwards: bool) -> Tensor:
    """(..., p, a) and a frame of a * n rows: (..., p n, R), or (..., n p, R) backwards."""
    *lead, p, a = before.shape
    R = core.shape[-1]
    if backwards:
        return (before[..., None, :, :] @ core.reshape(*lead, n, a, R)).reshape(*lead, n * p, R)
    return (before @ core.reshape(*lead, a, n * R)).reshape(*lead, p * n, R)


def _split(matrix: Tensor, n: int, backwards: bool) -> Tensor:
    """The matrix's rows (n, rest), or (rest, n) backwards, as n by what is left and the columns."""
    if backwards:
        return matrix.reshape(-1, n, matrix.shape[1]).transpose(0, 1)
    return matrix.reshape(n, -1, matrix.shape[1])


def _next(carried: Tensor, n: int, rest: int, backwards: bool) -> Tensor:
    """(a, rest * c) as the next core's rows by what is left: rows (a, n), or (n, a) backwards."""
    a = carried.shape[0]
    if backwards:
        return carried.reshape(a, rest // n, n, -1).permute(2, 0, 1, 3)
    return carried.reshape(a, n, rest // n, -1)


def _turned(core: Tensor, turn: Tensor, backwards: bool) -> Tensor:
    """A frame whose rows' index a is multiplied by `turn`, which the frame before it gave up."""
    a, (rows, R) = turn.shape[0], core.shape
    if backwards:
        return (turn @ core.reshape(rows // a, a, R)).reshape(rows, R)
    return (turn @ core.reshape(a, -1)).reshape(rows, R)


def _rq(block: Tensor) -> Tensor:
    """Q of a square block T Q, with T upper triangular and Q orthogonal."""
    q: Tensor = torch.linalg.qr(block.flip(0).mT)[0]
    return q.mT.flip(0)
