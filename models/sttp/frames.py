"""Orthonormal frames in St(d, r) as products of Householder reflections, in compact WY form.

Q = H_1 ... H_r I_{d x r} with H_i = I - 2 h_i h_i^T / |h_i|^2, where h_i has zeros above row i and 1 there
(LAPACK's layout). With V = [h_1 ... h_r], Q = I_{d x r} - V T (V_{1:r,:})^T, where
T^{-1} = striu(V^T V) + diag(|h_i|^2 / 2) (Schreiber & Van Loan, SIAM J. Sci. Stat. Comput. 10, 1989; Joffrain
et al., ACM TOMS 32, 2006): one Gram product, one triangular solve and one product for any number of frames.

A reduced frame, St_U(d, r), has zeros in rows 2 to r of the vectors as well: the leading block of Q is then
upper triangular (Obukhov et al., arXiv:2103.04217). Packed, a frame is its vectors' free entries
only: the triangle row by row, which a reduced frame has not, then the (d - r) x r block below.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.errors import InvalidShape

PADDING = 1.5
"""How much more work, at most, frames of different sizes may take together than each by itself."""


@dataclass(frozen=True)
class Frame:
    """A frame's size: `columns` orthonormal vectors of `rows` entries; `reduced` for St_U.

    Raises InvalidShape for more columns than rows, or none.
    """

    rows: int
    columns: int
    reduced: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= self.rows:
            raise InvalidShape(
                f"{self.columns} orthonormal vectors of {self.rows} entries: there are 1 to {self.rows}"
            )

    @property
    def triangle(self) -> int:
        """Free entries above row r."""
        return 0 if self.reduced else self.columns * (self.columns - 1) // 2

    @property
    def below(self) -> int:
        """Rows from r on."""
        return self.rows - self.columns

    @property
    def parameters(self) -> int:
        """Degrees of freedom: dr - r(r + 1)/2, and (d - r)r of a reduced frame."""
        return self.triangle + self.below * self.columns


def frames(packed: Tensor, shapes: Sequence[Frame]) -> list[Tensor]:
    """Frames (..., d_k, r_k) of their packed entries (..., sum of parameters), one frame's after another's.

    Frames of like size are computed together, smaller ones padded. From half precision they are computed, and
    returned, in float32, and are as orthonormal. Raises InvalidShape for another number of entries.
    """
    entries = sum(shape.parameters for shape in shapes)
    if packed.shape[-1] != entries:
        raise InvalidShape(f"the frames {list(shapes)} have {entries} entries, not {packed.shape[-1]}")
    if packed.dtype in (torch.float16, torch.bfloat16):
        packed = packed.float()
    parts = torch.split(packed, [shape.parameters for shape in shapes], dim=-1)
    made: dict[int, Tensor] = {}
    with full_precision(packed):
        for batch in batches(shapes):
            made |= dict(
                zip(batch, _together([parts[k] for k in batch], [shapes[k] for k in batch]), strict=True)
            )
    return [made[k] for k in range(len(shapes))]


def frame(packed: Tensor, shape: Frame) -> Tensor:
    """The frame (..., d, r) of its packed entries (..., parameters)."""
    return frames(packed, [shape])[0]


def reflectors(given: Tensor, *, reduced: bool = False) -> tuple[Tensor, Tensor]:
    """(packed, signs): orthonormal columns `given` (..., d, r) are `frame(packed)` times signs (..., r).

    The leading block of a reduced frame must be upper triangular. No entry is above 1 in magnitude (geqrf).
    """
    shape = Frame(given.shape[-2], given.shape[-1], reduced)
    vectors = torch.geqrf(given)[0]
    packed = vectors[..., shape.columns :, :].flatten(-2)
    if not reduced:
        row, column = torch.tril_indices(shape.columns, shape.columns, -1, device=given.device)
        packed = torch.cat([vectors[..., row, column], packed], dim=-1)
    along = (frame(packed, shape) * given).sum(dim=-2)
    return packed, torch.where(along < 0, -1.0, 1.0).to(given.dtype)


def batches(shapes: Sequence[Frame]) -> list[tuple[int, ...]]:
    """Which frames are computed together: neighbours in size, as far as `PADDING` allows."""
    order = sorted(range(len(shapes)), key=lambda k: (shapes[k].columns, shapes[k].rows, k))
    found: list[tuple[int, ...]] = []
    for k in order:
        if found and _padded_work([shapes[i] for i in (*found[-1], k)]) <= PADDING:
            found[-1] = (*found[-1], k)
        else:
            found.append((k,))
    return found


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """A context without autocast, which would multiply in half precision and lose orthogonality."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _padded_work(shapes: Sequence[Frame]) -> float:
    """The work of a padded batch over that of its frames, as d r^2."""
    own = sum(shape.rows * shape.columns**2 for shape in shapes)
    below, columns = max(shape.below for shape in shapes), max(shape.columns for shape in shapes)
    return len(shapes) * (below + columns) * columns**2 / own


def _together(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> list[Tensor]:
    """Frames of one batch. A column that a smaller frame is filled up with reflects a row of zeros."""
    below, columns = max(shape.below for shape in shapes), max(shape.columns for shape in shapes)
    free = [_unpacked(part, shape, below, columns) for part, shape in zip(parts, shapes, strict=True)]
    batch = free[0][None] if len(free) == 1 else torch.stack(free)
    made = _compact_wy(batch.reshape(-1, *batch.shape[-2:]))
    of_size = made.reshape(batch.shape).unbind() if len(shapes) > 1 else [made.reshape(batch.shape[1:])]
    return [_cropped(whole, shape, columns) for whole, shape in zip(of_size, shapes, strict=True)]


def _unpacked(part: Tensor, shape: Frame, below: int, columns: int) -> Tensor:
    """The free entries (..., columns + below, columns): r rows and the others, each filled up with zeros."""
    lead, r = part.shape[:-1], shape.columns
    triangle, block = torch.split(part, [shape.triangle, shape.below * r], dim=-1)
    top = part.new_zeros(*lead, r * r)
    if shape.triangle:
        row, column = torch.tril_indices(r, r, -1, device=part.device)
        top = top.index_copy(-1, row * r + column, triangle)
    top, bottom = top.reshape(*lead, r, r), block.reshape(*lead, shape.below, r)
    fill, rows = columns - r, below - shape.below
    if fill:
        top = torch.nn.functional.pad(top, (0, fill, 0, fill))
    if fill or rows:
        bottom = torch.nn.functional.pad(bottom, (0, fill, 0, rows))
    return torch.cat([top, bottom], dim=-2)


def _cropped(whole: Tensor, shape: Frame, columns: int) -> Tensor:
    """A frame without what it was filled up with."""
    r = shape.columns
    if r == columns:
        return whole if whole.shape[-2] == shape.rows else whole[..., : shape.rows, :]
    return torch.cat([whole[..., :r, :r], whole[..., columns : columns + shape.below, :r]], dim=-2)


def _compact_wy(free: Tensor) -> Tensor:
    """Q (b, d, r) of V - I; compilers take the formula itself and derive it themselves."""
    if not torch.compiler.is_compiling():
        made: Tensor = _CompactWY.apply(free)[0]  # type: ignore[no-untyped-call]
        return made
    return _frame_of(free, _factored(free)[0])


class _CompactWY(torch.autograd.Function):
    """Free entries W = V - I (b, d, r) to (Q, X, T^{-1}), with X = T V_{1:r}^T; the last two are kept.

    Of G = dL/dQ and S = T^T V^T G, with A = S X^T: dL/dV = V (triu(A) + striu(A)^T) - G X^T, less S^T in the
    first r rows. That is a product less than autograd's, and no pass over V besides products.
    """

    @staticmethod
    def forward(free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor, inverse = _factored(free)
        return _frame_of(free, factor), factor, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        (free,), (_, factor, inverse) = inputs, output
        ctx.mark_non_differentiable(factor, inverse)
        ctx.save_for_backward(free, factor, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:
        free, factor, inverse = ctx.saved_tensors
        with full_precision(gradient):
            if torch.is_grad_enabled():
                factor, inverse = _factored(free)
            return _gradient(free, factor, inverse, gradient)


def _factored(free: Tensor) -> tuple[Tensor, Tensor]:
    """(X, T^{-1}) of W = V - I, where T^{-1} = striu(V^T V) + diag(|h_i|^2 / 2).

    The ones on V's diagonal are added last: squares of small entries are lost beside them.
    """
    first = free[..., : free.shape[-1], :].mT
    gram = free.mT @ free
    identity = _identity(free)
    halves = torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
    inverse = torch.triu(gram, 1) + first + halves + identity / 2
    return torch.linalg.solve_triangular(inverse, first + identity, upper=True), inverse


def _frame_of(free: Tensor, factor: Tensor) -> Tensor:
    """Q = I - V X."""
    made = free @ -factor
    made[..., : free.shape[-1], :] += _identity(free) - factor
    return made


def _gradient(free: Tensor, factor: Tensor, inverse: Tensor, gradient: Tensor) -> Tensor:
    """dL/dV of dL/dQ."""
    r = free.shape[-1]
    along = free.mT @ gradient + gradient[:, :r]
    solved = torch.linalg.solve_triangular(inverse.mT, along, upper=False)
    inner = solved @ factor.mT
    symmetric = torch.triu(inner) + torch.triu(inner, 1).mT
    found = torch.baddbmm(free @ symmetric, gradient, factor.mT, alpha=-1)
    found[:, :r] += symmetric - solved.mT
    return found


def _identity(free: Tensor) -> Tensor:
    return torch.eye(free.shape[-1], dtype=free.dtype, device=free.device)
